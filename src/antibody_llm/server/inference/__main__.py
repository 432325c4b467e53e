"""``python -m antibody_llm.server.inference SOCKET``: the inference process, started by the server."""

import signal
import sys

import uvicorn

from ..parent import die_with_parent
from .app import make_app
from .engine import Engine


def main(arguments: list[str]) -> None:
    """Serve on a socket until a signal."""
    die_with_parent(signal.SIGTERM)
    config = uvicorn.Config(
        make_app(Engine()),
        uds=arguments[0],
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=10,
        timeout_keep_alive=75,  # longer than the server, its only client, keeps an idle connection
    )
    uvicorn.Server(config).run()


if __name__ == "__main__":
    main(sys.argv[1:])
