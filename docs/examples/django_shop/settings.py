"""Settings of the example; a project has many more."""

import os

from psycopg.conninfo import conninfo_to_dict

where = conninfo_to_dict(os.environ["DISTLOCK_URL"])

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": where.get("dbname"),
        "USER": where.get("user"),
        "PASSWORD": where.get("password"),
        "HOST": where.get("host"),
        "PORT": where.get("port"),
    }
}
INSTALLED_APPS = ["shop"]
ROOT_URLCONF = "shop.urls"
TEST_RUNNER = "shop.runner.Runner"
SECRET_KEY = "only for the example"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ALLOWED_HOSTS = ["*"]
