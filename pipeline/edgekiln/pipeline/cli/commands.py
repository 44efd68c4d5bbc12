"""All commands, in the order in which a person meets them. Each stands in the module that it is imported from."""

from __future__ import annotations

from edgekiln.pipeline.cli.bench import bench
from edgekiln.pipeline.cli.compare import compare
from edgekiln.pipeline.cli.completion import completion
from edgekiln.pipeline.cli.demo import demo
from edgekiln.pipeline.cli.device import device
from edgekiln.pipeline.cli.diff import diff
from edgekiln.pipeline.cli.doctor import doctor
from edgekiln.pipeline.cli.engines import build, cache
from edgekiln.pipeline.cli.fleet import fleet
from edgekiln.pipeline.cli.init import init
from edgekiln.pipeline.cli.inspect import inspect
from edgekiln.pipeline.cli.pack import pack
from edgekiln.pipeline.cli.predict import predict
from edgekiln.pipeline.cli.recipe import recipe
from edgekiln.pipeline.cli.report import report
from edgekiln.pipeline.cli.run import run
from edgekiln.pipeline.cli.serve import serve
from edgekiln.pipeline.cli.signing import SIGNING_COMMANDS
from edgekiln.pipeline.cli.soak import soak
from edgekiln.pipeline.cli.stages import STAGE_COMMANDS
from edgekiln.pipeline.cli.transfer import transfer

__all__ = ["COMMANDS"]

COMMANDS = (
    demo,
    init,
    run,
    *STAGE_COMMANDS,
    pack,
    build,
    bench,
    device,
    predict,
    serve,
    inspect,
    diff,
    compare,
    fleet,
    transfer,
    report,
    *SIGNING_COMMANDS,
    soak,
    doctor,
    cache,
    recipe,
    completion,
)
