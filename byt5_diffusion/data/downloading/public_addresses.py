"""Addresses of strangers: which of them lead to the open internet.

url_fault("file:///etc/passwd")   "neither http nor https"
is_public("169.254.169.254")      False
"""

import contextlib
import ipaddress
import re
import urllib.parse
from typing import Any

_MAX_URL = 8192
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9_.])?")
_URL = re.compile(r"https?://[!-~]+", re.IGNORECASE)
# Not called private by every Python's table, or public, but not as meant here.
_NOT_PUBLIC = tuple(
  ipaddress.ip_network(network)
  for network in (
    "168.63.129.16/32",  # A cloud's own service for its machines.
    "192.0.0.0/24",  # The network's own protocols; another cloud's service.
    "192.88.99.0/24",  # Relays to 2002::/16.
    "64:ff9b::/96",  # IPv4 addresses, private ones too, behind a translator.
    "64:ff9b:1::/48",
    "2001::/23",  # Protocols; tunnels of IPv4 addresses (Teredo).
    "2002::/16",  # The same (6to4).
    "3fff::/20",  # Documentation.
    "5f00::/16",  # Segment routing.
  )
)


class Refused(Exception):
  """What is not connected to, or cut off; the reason is its message."""


def is_public(address: str) -> bool:
  """Whether a literal address is one of the open internet."""
  try:
    parsed = ipaddress.ip_address(address.partition("%")[0])
  except ValueError:
    return False
  mapped = getattr(parsed, "ipv4_mapped", None)
  parsed = mapped or parsed
  return (
    parsed.is_global
    and not parsed.is_multicast
    and not parsed.is_reserved
    and not parsed.is_unspecified
    and not getattr(parsed, "is_site_local", False)
    and not any(
      parsed in network
      for network in _NOT_PUBLIC
      if network.version == parsed.version
    )
  )


def url_fault(url: Any) -> str | None:
  """Why an address of a list is not even tried; None: it is."""
  if not isinstance(url, str) or not url:
    return "no address"
  if len(url) > _MAX_URL:
    return "address too long"
  if not _URL.fullmatch(url):
    ours = url.lower().startswith(("http://", "https://"))
    return "letters that no address has" if ours else "neither http nor https"
  try:
    parts = urllib.parse.urlsplit(url)
    host_and_port(parts)
  except ValueError:
    return "no address"
  except Refused as refusal:
    return str(refusal)
  return None


def host_and_port(parts: urllib.parse.SplitResult) -> tuple[str, int]:
  """Of an http or https address.

  Raises:
    Refused, ValueError: it has none.
  """
  if parts.username is not None or parts.password is not None:
    raise Refused("a password in the address")
  host = parts.hostname or ""
  check_host(host)
  return host, parts.port or (443 if parts.scheme == "https" else 80)


def check_host(host: str) -> None:
  """Raises Refused for what is neither a host's name nor its address."""
  with contextlib.suppress(ValueError):
    ipaddress.IPv6Address(host.partition("%")[0])
    return
  if not _HOST.fullmatch(host):
    raise Refused("no host's name")
