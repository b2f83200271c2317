"""Settings: read once, bounded, and every one of them documented."""

from pathlib import Path

import pytest

from service.config import PREFIX, Settings, load_settings, service_links
from service.errors import ConfigurationError

OPERATIONS = (Path(__file__).parent.parent / "docs" / "operations.md").read_text()


def test_an_unknown_setting_stops_the_start_and_names_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"PREDICT_TTL_SECOND\. Did you mean PREDICT_TTL_SECONDS\?"):
        load_settings({"PREDICT_TTL_SECOND": "5"})


def test_a_value_out_of_bounds_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"PREDICT_PORT='70000'"):
        load_settings({"PREDICT_PORT": "70000"})


def test_other_variables_are_none_of_our_business() -> None:
    assert load_settings({"HOME": "/x", "PREDICT_PORT": "9000"}).port == 9000


@pytest.mark.parametrize(
    "names",
    [
        {"PREDICT_SERVICE_HOST": "10.0.0.1", "PREDICT_SERVICE_PORT": "80", "PREDICT_SERVICE_PORT_HTTP": "80"},
        {"PREDICT_PORT": "tcp://10.0.0.1:80", "PREDICT_PORT_80_TCP": "tcp://10.0.0.1:80"},
        {"PREDICT_PORT_80_TCP_ADDR": "10.0.0.1", "PREDICT_PORT_80_TCP_PROTO": "tcp", "PREDICT_PORT_80_TCP_PORT": "80"},
        {"PREDICT_API_SERVICE_HOST": "10.0.0.1", "PREDICT_API_PORT": "tcp://10.0.0.1:80"},
    ],
)
def test_what_kubernetes_sets_for_a_service_called_predict_is_no_setting(names: dict[str, str]) -> None:
    assert load_settings({**names, "PREDICT_TTL_SECONDS": "5"}) == load_settings({"PREDICT_TTL_SECONDS": "5"})
    assert service_links({**names, "PREDICT_TTL_SECONDS": "5"}) == list(names)


def test_a_port_that_is_no_link_to_a_service_is_a_setting() -> None:
    assert service_links({"PREDICT_PORT": "9000", "PREDICT_HOST": "::"}) == []
    with pytest.raises(ConfigurationError, match="PREDICT_PORT_TCP"):
        load_settings({"PREDICT_PORT_TCP": "tcp://10.0.0.1:80"})


def test_a_flag_comes_before_its_variable_and_is_bounded_as_well() -> None:
    settings = load_settings({"PREDICT_PORT": "1", "PREDICT_WORKERS": "3"}, arguments=["--port=9000", "--hit-path=no"])
    assert (settings.port, settings.workers, settings.hit_path) == (9000, 3, False)
    with pytest.raises(ConfigurationError, match="PREDICT_PORT='70000'"):
        load_settings({}, arguments=["--port", "70000"])


def test_help_lists_every_setting_as_a_flag_with_its_description(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        load_settings({}, arguments=["--help"])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name, field in Settings.model_fields.items():
        assert f" --{name.replace('_', '-')} " in shown
        assert field.description in shown


def test_a_secret_is_never_shown() -> None:
    settings = load_settings({"PREDICT_CACHE_SECRET": "hunter2", "PREDICT_ADMIN_TOKEN": "hunter3"})
    assert "hunter" not in repr(settings)
    assert "hunter" not in str(settings.model_dump())


@pytest.mark.parametrize(("setting", "given"), [("LOG_LEVEL", "INFO"), ("DEVICE", "CPU"), ("CACHE_CONTROL", "Private")])
def test_a_choice_may_be_written_in_any_case(setting: str, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PREFIX + setting, given)
    for settings in (load_settings(), load_settings({PREFIX + setting: given})):
        assert getattr(settings, setting.lower()) == given.lower()


@pytest.mark.parametrize("secret", ["", " "])
def test_an_empty_secret_is_refused(secret: str) -> None:
    with pytest.raises(ConfigurationError, match=r"PREDICT_CACHE_SECRET=.*empty secret"):
        load_settings({"PREDICT_CACHE_SECRET": secret})


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_stands_in_the_readme_with_its_description(name: str) -> None:
    field = Settings.model_fields[name]
    line = next((line for line in OPERATIONS.splitlines() if line.startswith(f"| `{PREFIX}{name.upper()}` |")), "")
    assert field.description and field.description in line


@pytest.mark.parametrize("name", ["PREDICT_CACHE_SECRET", "PREDICT_ADMIN_TOKEN"])
def test_a_secret_that_is_no_text_is_refused_and_not_shown(name: str) -> None:
    with pytest.raises(ConfigurationError, match=name) as refused:
        load_settings({name: "geheim\udcff"})
    assert "geheim" not in str(refused.value)
