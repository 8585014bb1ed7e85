"""The configuration as people may see it: without what may be a secret."""

from __future__ import annotations

from typing import Any

import yaml

from rlaif.config.location import may_be_shown
from rlaif.config.schema import Config

HIDDEN = "(hidden)"
OPEN_OPTIONS = ("region", "scheme", "endpoint_override", "allow_bucket_creation")
"""Options in the URI of a bucket that are not secrets."""


def shown_config(config: Config) -> str:
    """Return the resolved configuration as YAML for people to read, without what may be a secret."""
    values = _without_secrets(config.model_dump(mode="json"), ())
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _without_secrets(value: Any, location: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {key: _without_secrets(item, (*location, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_secrets(item, location) for item in value]
    if value not in (None, {}) and not may_be_shown(location):
        return HIDDEN
    if isinstance(value, str) and "://" in value:
        return _uri_without_secrets(value)
    return value


def _uri_without_secrets(uri: str) -> str:
    """Hide user, password and every option but the open ones: the keys of a bucket are options of its URI too."""
    scheme, _, rest = uri.partition("://")
    address, mark, query = rest.partition("?")
    host, slash, path = address.partition("/")
    if "@" in host:
        _, _, after_user = host.rpartition("@")
        host = f"{HIDDEN}@{after_user}"
    options = []
    for option in query.split("&") if mark else []:
        key, _, value = option.partition("=")
        options.append(f"{key}={value if key in OPEN_OPTIONS else HIDDEN}")
    return f"{scheme}://{host}{slash}{path}{mark}{'&'.join(options)}"
