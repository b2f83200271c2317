"""nginx, twice: fixed bytes (the practical limit), and as a cache in front of a Python service."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.client import Address, get
from benchmarks.machine import CLIENT_CORE
from benchmarks.peers.contestant import Contestant, Cores, Model, script
from benchmarks.processes import StartFailed, free_port, running

_CONFIGURATION = """
daemon off; user {user} {group}; worker_processes 1; pid nginx.pid; error_log stderr error;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 1000000000; default_type application/json;
  client_body_temp_path body; proxy_temp_path proxy;
  fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  {http}
  server {{ listen 127.0.0.1:{port}; {server} }}
}}
"""

# The same headers as a hit of ours carries, so that both send as many bytes.
FIXED = """
  location / {
    add_header Cache-Status "predict; hit; ttl=287; detail=L1";
    add_header Cache-Control "public, max-age=300";
    add_header Age 13;
    add_header ETag 'W/"4Jx0Wq3yUu1hQm5vT2bZkA"';
    return 200 '{"model":"iris","prediction":"0","label":"setosa","probabilities":[1.0,0.0,0.0]}';
  }
"""

_CACHE = """
  proxy_cache_path cache keys_zone=answers:10m max_size=100m inactive=1h;
  upstream python { server %s:%d; keepalive 8; }
"""
_PROXY = """
  location / { proxy_pass http://python; proxy_http_version 1.1; proxy_set_header Connection ""; }
  location /predict {
    proxy_pass http://python; proxy_http_version 1.1; proxy_set_header Connection "";
    proxy_cache answers; proxy_cache_valid 200 5m; proxy_cache_lock on;
    add_header X-Cache $upstream_cache_status;
  }
"""


@contextmanager
def fixed(contestant: Contestant, model: Model, cores: Cores) -> Iterator[Address]:
    """``return 200`` with about 80 bytes of JSON."""
    with nginx("", FIXED, cores) as address:
        yield address


@contextmanager
def proxy_cache(contestant: Contestant, model: Model, cores: Cores) -> Iterator[Address]:
    """``proxy_cache`` in front of the contestant's script, which runs on the client's core and is idle on hits."""
    with script(contestant, model, CLIENT_CORE) as upstream, nginx(_CACHE % upstream, _PROXY, cores) as address:
        yield address


@contextmanager
def nginx(http: str, server: str, cores: Cores) -> Iterator[Address]:
    """One worker on ``cores`` with these parts of a configuration. Raises StartFailed where nginx is missing."""
    binary = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin")
    if binary is None:
        raise StartFailed("nginx is not installed (Debian: nginx)")
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        user, group = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(os.getgid()).gr_name
        text = _CONFIGURATION.format(http=http, server=server, port=port, user=user, group=group)
        Path(directory, "nginx.conf").write_text(text)
        command = [binary, "-p", directory, "-c", "nginx.conf", "-e", "stderr"]
        with running(command, address=("127.0.0.1", port), ready=get("/openapi.json"), cores=cores):
            yield "127.0.0.1", port
