import pytest

from tests.support import media_files
from tests.support.small_run import small_config
from vaejax.train.setup import Setup


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of 40 photos."""
    folder = tmp_path_factory.mktemp("photos")
    media_files.write_photos(folder, 40)
    return folder


@pytest.fixture(scope="session")
def setup(photos):
    """The setup of a small run with held-out photos; it initializes a state once compiled."""
    return Setup.of(small_config(photos, **{"data.holdout": 0.2}))
