"""Models of tables: scikit-learn's estimators."""
