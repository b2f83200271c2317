PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TEST_WORKERS ?= 2

.PHONY: help install train run test test-faults test-contract test-deploy test-gpu check format lock audit estimators demo bench bench-quick bench-peers bench-forms bench-hit-rate bench-resnet bench-gpu gpu-bundle load load-ui figures up down clean

help:  ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## The virtual environment, with exactly the locked dependencies

$(INSTALLED): requirements-dev.lock
	$(PYTHON) -m venv $(VENV)
	@# uv is fetched first, by its locked hash, and installs the rest many times faster than pip does.
	@sed -n '/^uv==/,/# via/p' requirements-dev.lock > $(VENV)/uv.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement $(VENV)/uv.lock
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip sync --require-hashes requirements-dev.lock
	@touch $@

train: models/iris/manifest.json models/digits/manifest.json  ## The models iris and digits, where missing

models/iris/manifest.json: | $(INSTALLED)
	$(BIN)/python -m training.iris

models/digits/manifest.json: | $(INSTALLED)
	$(BIN)/python -m training.resnet

run: install train  ## The service on 127.0.0.1:8000, with a Redis of its own
	PREDICT_REDIS_URL=$${PREDICT_REDIS_URL-embedded} exec $(BIN)/python -m service

test: install  ## All tests but the long ones; TEST_WORKERS=0 runs them one after the other
	$(BIN)/python -m pytest --numprocesses $(TEST_WORKERS) --dist loadfile

test-faults: install  ## The long tests: faults, overload, floods, training to the end
	$(BIN)/python -m pytest -m faults

test-contract: install  ## The long contract tests: schemathesis, Triton's client
	$(BIN)/python -m pytest -m contract

test-deploy: install  ## The page in Chromium, nginx, Prometheus, Kubernetes' schemas; each says so where its program is missing
	$(BIN)/python -m pytest -m deploy

test-gpu: install  ## The tests that need a CUDA device; they say so where there is none
	$(BIN)/python -m pytest -m gpu

check: install  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header pyproject.toml

lock: install  ## The lock files, from pyproject.toml: what serves, what a GPU and training need besides, and all of it
	$(LOCK) --extra vision --extra tables -o requirements.lock
	$(LOCK) --extra vision --extra tables --extra torch -c requirements.lock -o requirements-torch.lock
	$(LOCK) --all-extras -c requirements-torch.lock -o requirements-dev.lock

audit: install  ## Known vulnerabilities of the locked packages, as pip-audit finds them at PyPI
	@# Where PyPI does not answer, the last line says so, after a long traceback.
	@$(BIN)/uv tool run pip-audit --strict --disable-pip --require-hashes --requirement requirements-dev.lock 2> $(VENV)/audit.log; \
		code=$$?; tail -n 1 $(VENV)/audit.log; exit $$code

estimators: install  ## The table of estimators in docs/models.md
	$(BIN)/python -W ignore -m training.estimators

demo: install train  ## The same question twice, ten times with the cache and without, the keys in Redis
	$(BIN)/python -m benchmarks.demo

bench: install train  ## Cold against warm: a table and a chart
	$(BIN)/python -m benchmarks.cold_warm

bench-quick: install train  ## Our hits against nginx and bare uvicorn, in under a minute
	$(BIN)/python -m benchmarks.quick

bench-peers: install train  ## Us and everybody else, in one run
	$(BIN)/python -m benchmarks.peers

bench-forms: install train  ## Each form of a question, and what a user would otherwise pick for it
	$(BIN)/python -m benchmarks.forms

bench-hit-rate: install train  ## Hits among inputs that nobody sent before: cells against exact match
	$(BIN)/python -m benchmarks.hit_rate

bench-resnet: install  ## ResNet-18 on the CPU: us against torch, ONNX Runtime and OpenVINO in a loop
	$(BIN)/python -m benchmarks.resnet

load: install train  ## Locust: 1,000 requests a second for a minute, judged by errors, mean, p99
	$(BIN)/python -m benchmarks.load_test

load-ui: install train  ## The same, with Locust's page on port 8089
	$(BIN)/python -m benchmarks.load_test --ui

bench-gpu: install  ## A ResNet on a GPU: us against the bare model, and what each mechanism brings
	$(BIN)/python -m benchmarks.gpu

gpu-bundle: install  ## build/gpu.tar.gz: what benchmarks/gpu.sh needs on a machine that has torch and no package index
	mkdir -p build && rm -rf build/gpu
	@# The machine has numpy, scipy, scikit-learn, pandas, Pillow, safetensors, tqdm and pytest beside torch and torchvision.
	awk '/^[a-z]/ { keep = !/^(openvino|openvino-telemetry|numpy|scipy|scikit-learn|pandas|pillow)==/ } keep' requirements.lock > build/gpu.lock
	awk '/^[a-z]/ { keep = /^http-sf==/ } keep' requirements-dev.lock >> build/gpu.lock
	$(BIN)/uv pip install --quiet --no-deps --require-hashes --target build/gpu --python-version 3.12 --python-platform x86_64-manylinux_2_28 --requirement build/gpu.lock
	tar -czf build/gpu.tar.gz -C build/gpu .

figures: install  ## The figures of docs/reliability.md; ONLY=name takes one of them
	$(BIN)/python -m tests.reliability $(addprefix --only=,$(ONLY))

up:  ## docker compose: the service, Redis, trained models
	docker compose up --build --detach --wait

down:  ## Stop what `make up` and the profiles started
	docker compose --profile replicas --profile monitoring down

clean:  ## Everything that was made here
	rm -rf $(VENV) .venvs models build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
