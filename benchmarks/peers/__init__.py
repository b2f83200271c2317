"""Us and the others, in one run: the same forest, the same cores, in turns.

``serve_*.py`` are the peers. Each runs in an environment of its own, which the comment block at its top describes
(inline script metadata), listens on 127.0.0.1:$PORT, loads the forest from the joblib file $MODEL and caches in
$REDIS_URL if it caches in Redis. Those with a cache tell at /computations how many rows they really predicted.
``roster.py`` says how each is asked; ``__main__.py`` takes turns; ``report.py`` writes tables and chart.
"""
