"""--arch and --model: the networks that a command is about."""

from ghn_jax.base.errors import UserError
from ghn_jax.hypernet.predict import check_head, check_network
from ghn_jax.models.loading import load_model
from ghn_jax.models.model import Model
from ghn_jax.models.tracing import trace
from ghn_jax.networks.files import load_networks
from ghn_jax.runs.hypernetwork import Hypernetwork
from ghn_jax.runs.prediction import with_names


def check_given(arch: str | None, model: str | None) -> None:
    """Raise UserError unless one of --arch and --model is given."""
    if bool(arch) == bool(model):
        given = 'both given' if arch else 'missing'
        raise UserError(f'--arch and --model are {given}: give one of them')


def read_models(
    arch: str | None, model: str | None, size: int
) -> tuple[list[Model], dict[str, dict[str, str]]]:
    """Return the networks, and by the name of each how it is made (as `calibrated_file` keeps it).

    Args:
      arch: architecture file.
      model: package.module:function; one of the two is given.
      size: of the images, in pixels.

    Raises:
      UserError: a file of networks that are not for such images; a model that cannot be imported or traced.
    """
    shape = 1, size, size, 3
    if model:
        loaded = load_model(model, shape)
        return [loaded], {loaded.name: {'model': model}}
    specs = with_names(load_networks(arch or ''))
    for spec in specs:
        check_head(spec, size)
    return [trace(spec, shape) for spec in specs], {spec.name: {'arch': spec.to_json()} for spec in specs}


def read_model(
    arch: str | None, model: str | None, hypernetwork: Hypernetwork
) -> tuple[Model, dict[str, str]]:
    """Return the network, and how it is made (as `calibrated_file` keeps it).

    Args:
      arch: architecture file with one network that the hypernetwork takes.
      model: package.module:function; one of the two is given.
      hypernetwork: of the run, whose image size the network has.

    Raises:
      UserError: a file of several networks or of one that is not for this hypernetwork; a model that cannot
        be imported or traced.
    """
    size = hypernetwork.config.image_size
    if model:
        return load_model(model, (1, size, size, 3)), {'model': model}
    specs = load_networks(arch or '')
    if len(specs) != 1:
        raise UserError(f'--arch={arch} holds {len(specs)} networks: give a file of one')
    check_network(specs[0], hypernetwork.run.ghn, size)
    return trace(specs[0], (1, size, size, 3)), {'arch': specs[0].to_json()}
