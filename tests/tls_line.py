"""A line to Postgres that speaks TLS as a hosted database does, with certificates made here; or that changes bytes."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"


@dataclass(frozen=True, slots=True)
class Authority:
    """Issues certificates; `file` is its own in PEM, which clients are given."""

    file: Path
    _key: ec.EllipticCurvePrivateKey
    _certificate: x509.Certificate

    @classmethod
    def make(cls, directory: Path, name: str = "authority") -> Authority:
        """Make an authority whose files are kept in `directory`."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _signed(key, name, key, name, days=1, authority=True)
        file = directory / f"{name}.pem"
        file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return cls(file, key, certificate)

    def server(self, host: str, *, days: int = 1) -> ssl.SSLContext:
        """Return what a server needs for this name or address; with negative `days` it has expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = self._certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        certificate = _signed(key, host, self._key, str(issuer), days=days)
        file = self.file.with_name(f"{self.file.stem}-{host}-{days}.pem")
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(file)
        return context


@contextlib.asynccontextmanager
async def database_line(
    url: str, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None,
    change: Callable[[bytes], bytes] = lambda block: block,
) -> AsyncIterator[str]:  # fmt: skip
    """Give a URL that leads to the database of `url` through a line on `host`, with TLS where `tls` is given.

    `change` may rewrite what the database says.
    """
    before = urlsplit(url)
    writers: list[asyncio.StreamWriter] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        # AttributeError: what asyncio makes of a client that hangs up during the handshake.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, AttributeError):
            if tls is not None:
                assert await reader.readexactly(8) == _SSL_REQUEST
                writer.write(b"S")
                plain = writer.transport
                try:
                    await writer.start_tls(tls)
                finally:
                    # Or the writer could not even be collected.
                    if writer.transport is None:
                        writer._transport = plain  # type: ignore[attr-defined]
            far_reader, far_writer = await asyncio.open_connection(before.hostname, before.port)
            writers.append(far_writer)
            up = asyncio.create_task(_pump(reader, far_writer, lambda block: block))
            try:
                await _pump(far_reader, writer, change)
            finally:
                up.cancel()

    server = await asyncio.start_server(accept, host, 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield before._replace(netloc=f"{before.netloc.rpartition('@')[0]}@{host}:{port}").geturl()
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, change: Callable[[bytes], bytes]) -> None:
    with contextlib.suppress(OSError):
        while block := await source.read(65536):
            sink.write(change(block))
            await sink.drain()
        sink.close()


def _signed(
    key: ec.EllipticCurvePrivateKey, name: str, issuer_key: ec.EllipticCurvePrivateKey, issuer: str, *,
    days: int, authority: bool = False,
) -> x509.Certificate:  # fmt: skip
    now = datetime.datetime.now(datetime.UTC)
    until = now + datetime.timedelta(days=days)
    try:
        alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        alternative = x509.DNSName(name)
    public = key.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, until) - datetime.timedelta(days=1))
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if authority:
        usage = x509.KeyUsage(
            digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
            data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        builder = builder.add_extension(usage, critical=True)
    return builder.sign(issuer_key, hashes.SHA256())
