import pytest
from shop.locks import locks


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup):
    yield
    if locks.cache_info().currsize:
        locks().close()
