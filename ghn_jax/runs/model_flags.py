"""--arch and --model: the networks that a command is about, or the one."""

from collections.abc import Sequence

from ghn_jax.base.errors import UserError
from ghn_jax.hypernet.predict import check_head, check_network
from ghn_jax.models.loading import load_model
from ghn_jax.models.model import Model
from ghn_jax.models.tracing import trace
from ghn_jax.networks.files import load_networks
from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.runs.hypernetwork import Hypernetwork


def read_networks(arch: str | None, model: str | None) -> list[NetworkSpec]:
    """Read the networks of --arch, before the work; there are none where --model is given in its place.

    Raises:
      UserError: not one of the two is given; a file that holds no networks.
    """
    if bool(arch) == bool(model):
        given = 'both given' if arch else 'missing'
        raise UserError(f'--arch and --model are {given}: give one of them')
    return load_networks(arch) if arch else []


def make_models(
    specs: Sequence[NetworkSpec], model: str | None, size: int
) -> tuple[list[Model], dict[str, dict[str, str]]]:
    """Return the networks, and by the name of each how it is made (as `calibrated_file` keeps it).

    Args:
      specs: networks, each with a name of its own.
      model: package.module:function, where there are no specs.
      size: of the images, in pixels.

    Raises:
      UserError: networks that are not for such images; a model that cannot be imported or traced.
    """
    shape = 1, size, size, 3
    if model:
        loaded = load_model(model, shape)
        return [loaded], {loaded.name: {'model': model}}
    for spec in specs:
        check_head(spec, size)
    return [trace(spec, shape) for spec in specs], {spec.name: {'arch': spec.to_json()} for spec in specs}


def read_network(arch: str | None, model: str | None) -> list[NetworkSpec]:
    """As `read_networks`; raise UserError also for a file of several networks."""
    specs = read_networks(arch, model)
    if len(specs) > 1:
        raise UserError(f'--arch={arch} holds {len(specs)} networks: give a file of one')
    return specs


def make_model(
    specs: Sequence[NetworkSpec], model: str | None, hypernetwork: Hypernetwork
) -> tuple[Model, dict[str, str]]:
    """Return the network, and how it is made (as `calibrated_file` keeps it).

    Args:
      specs: of `read_network`.
      model: package.module:function, where there is no spec.
      hypernetwork: of the run, whose image size the network has.

    Raises:
      UserError: a network that is not for this hypernetwork; a model that cannot be imported or traced.
    """
    size = hypernetwork.config.image_size
    for spec in specs:
        check_network(spec, hypernetwork.run.ghn, size)
    (made,), sources = make_models(specs, model, size)
    return made, sources[made.name]
