"""Server for tests: Python programs run in forks of one process that has imported what they need.

A fresh interpreter takes seconds to import torch, a fork none. Reads a JSON object per line:
``{"program", "arguments", "env", "output"}`` is answered by the id of the process that runs it,
``{"wait": id}`` by its exit code, and ``{"import": name}`` by 0 once all later forks have it.
"""

import json
import os
import sys
from importlib import import_module
from typing import Any

IMPORTED = (
    "pyarrow.compute",
    "pyarrow.dataset",
    "safetensors.torch",
    "simplejpeg",
    "torch.distributed",
    "tyro",
    "torchvision.models",
    "zarr",
    "coreset.engine.scoring.job",
    "coreset.engine.stages.decode",
    "coreset.engine.stages.pack",
    "coreset.engine.stages.score",
    "coreset.engine.artifacts.store",
)


def run(request: dict[str, Any]) -> None:
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv[1:] = request["arguments"]
    exec(compile(request["program"], "<program>", "exec"), {"__name__": "__main__"})  # noqa: S102 - ours


def serve() -> dict[str, Any] | None:
    """Answer requests; return one in the process that is to run it, None when all are answered."""
    for line in sys.stdin:
        request = json.loads(line)
        if "import" in request:
            import_module(request["import"])
            answer = 0
        elif "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        elif (answer := os.fork()) == 0:
            return request
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()
    return None


if __name__ == "__main__":
    import_module("coreset.engine.cli").hide_pandas()  # as every command does
    for name in IMPORTED:
        import_module(name)
    import_module("coreset.kernels.jpeg.resize").warm_up()
    if (todo := serve()) is not None:
        run(todo)
