"""``keygen``, ``sign``, ``verify`` and ``archive``: who made a bundle, and the bundle as one file."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from edgekiln.pipeline.cli.options import json_option, print_document
from edgekiln.runtime.errors import UsageError

__all__ = ["SIGNING_COMMANDS"]

_PASSPHRASE_VARIABLE = "EDGEKILN_KEY_PASSPHRASE"


@click.command()
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="NAME",
    help="NAME.key and NAME.pub are made.",
)
@click.option(
    "--passphrase", "ask", is_flag=True,
    help=f"Ask for a passphrase that encrypts the private key. {_PASSPHRASE_VARIABLE} gives one without asking.",
)  # fmt: skip
@json_option
def keygen(out: Path, ask: bool, as_json: bool) -> None:
    """Make a key pair (ECDSA, P-256) to sign bundles with. Keys that exist are never replaced.

    Keep NAME.key where you sign and nowhere else; give NAME.pub to whoever loads.

    \b
    edgekiln keygen --out release
    """
    from edgekiln.runtime.bundles.keys import fingerprint, load_public_keys, write_key_pair

    passphrase = _new_passphrase(ask)
    private, public = write_key_pair(out, passphrase)
    [key] = load_public_keys([public]).values()
    values = {
        "private": str(private),
        "public": str(public),
        "encrypted": passphrase is not None,
        "fingerprint": fingerprint(key),
    }
    if as_json:
        print_document(values)
        return
    click.echo(f"private      {private} ({'encrypted' if passphrase else 'not encrypted'})")
    click.echo(f"public       {public}")
    click.echo(f"fingerprint  {values['fingerprint']}")


def _new_passphrase(ask: bool) -> bytes | None:
    given = os.environ.get(_PASSPHRASE_VARIABLE)
    if given is not None:
        if not given:
            raise UsageError(f"{_PASSPHRASE_VARIABLE} is empty.", hint="Unset it, or give a passphrase.")
        return os.fsencode(given)  # as it stands in the environment, UTF-8 or not
    if not ask:
        return None
    if not _can_ask():
        raise UsageError(
            "There is no terminal to ask for a passphrase.", hint=f"Give it in {_PASSPHRASE_VARIABLE}."
        )
    passphrase: str = click.prompt("Passphrase", hide_input=True, confirmation_prompt=True, err=True)
    return os.fsencode(passphrase)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--key", required=True, type=click.Path(path_type=Path), help="Private key, PEM.")
@click.option("--replace", is_flag=True, help="Also where the bundle carries another signature.")
@json_option
def sign(bundle: Path, key: Path, replace: bool, as_json: bool) -> None:
    """Check a bundle and sign it: writes model.sig into its folder (OpenSSF Model Signing).

    \b
    edgekiln sign runs/traffic-lights/bundle --key release.key
    """
    from edgekiln.runtime.bundles.keys import load_private_key
    from edgekiln.runtime.bundles.manifest import SIGNATURE_NAME
    from edgekiln.runtime.bundles.signing import sign_bundle

    used = sign_bundle(bundle, load_private_key(key, _known_passphrase(key)), replace=replace)
    if as_json:
        print_document(
            {"bundle": str(bundle), "signature": str(bundle / SIGNATURE_NAME), "fingerprint": used}
        )
    else:
        click.echo(f"signed {bundle} with key {used}")


def _can_ask() -> bool:
    return sys.stdin.isatty()


def _known_passphrase(key: Path) -> bytes | None:
    """From the environment, or asked for where somebody can answer; ``None`` for a key that is not encrypted."""
    from edgekiln.runtime.bundles.keys import is_encrypted

    if not is_encrypted(key):
        return None
    given = os.environ.get(_PASSPHRASE_VARIABLE)
    if given is None and not _can_ask():
        raise UsageError(
            f"{key} is encrypted.", hint=f"Give its passphrase in {_PASSPHRASE_VARIABLE}.", path=key
        )
    passphrase: str = click.prompt("Passphrase", hide_input=True, err=True) if given is None else given
    return os.fsencode(passphrase)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--pub", "keys", required=True, multiple=True, type=click.Path(path_type=Path),
    help="Public key, PEM; given several times, one of them must have signed.",
)  # fmt: skip
@json_option
def verify(bundle: Path, keys: Sequence[Path], as_json: bool) -> None:
    """Check a bundle's signature, a folder's or a zip's, and every byte of it. Exits 4 when it does not hold.

    \b
    edgekiln verify runs/traffic-lights/bundle --pub release.pub
    """
    from edgekiln.runtime.bundles.bundle import open_bundle

    opened = open_bundle(bundle, trusted_keys=keys)
    if as_json:
        print_document(
            {
                "bundle": str(bundle),
                "name": opened.name,
                "digest": opened.digest,
                "files": len(opened.files),
                "fingerprint": opened.signer,
            }
        )
    else:
        click.echo(
            f"verified: {bundle} ({opened.name}, {len(opened.files)} files) is signed by key {opened.signer}"
        )


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The .zip to write.")
@json_option
def archive(bundle: Path, out: Path, as_json: bool) -> None:
    """Put a bundle, with its signature, into one .zip that loads like the folder. Same bundle, same bytes.

    \b
    edgekiln archive runs/traffic-lights/bundle --out traffic-lights.zip
    """
    from edgekiln.runtime.bundles.archive_writer import write_zip
    from edgekiln.runtime.bundles.bundle import open_bundle
    from edgekiln.runtime.bundles.source import hash_file

    if out.suffix.lower() != ".zip":
        raise UsageError(f"{out} does not end in .zip, and would not be taken as a bundle.", path=out)
    write_zip(open_bundle(bundle), out)
    digest, size = hash_file(out)
    if as_json:
        print_document({"archive": str(out), "bytes": size, "sha256": digest})
    else:
        click.echo(f"{out}  {size} bytes, sha256 {digest}")


SIGNING_COMMANDS = (keygen, sign, verify, archive)
