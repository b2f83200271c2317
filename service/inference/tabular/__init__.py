"""Models of tables: scikit-learn's estimators."""

import sys

# scikit-learn imports pandas where it is installed, and does nothing with it: 80 MB and a fifth of a second that only
# models need which were fitted on a DataFrame. So it is hidden while the module that asks for it is imported.
if "pandas" not in sys.modules:
    sys.modules["pandas"] = None  # type: ignore[assignment]
    try:
        import sklearn.utils.fixes  # noqa: F401
    finally:
        del sys.modules["pandas"]
