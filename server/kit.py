"""A site's kit: what a hospital is sent, in one archive. Text and bytes only; it holds one secret, the invitation."""

import gzip
import io
import tarfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Final

import tomli_w

from consilium.common.joining import AUTHORITY, KIT_FACTS, NODE_KEY, SITE_POLICY, SITE_SETTINGS, KitFacts

_SITE: Final = """# The settings of site {site} in the federation {federation}. Every key: docs/settings.md of Consilium.
# Paths are relative to this file's folder. Keys that are left out have their defaults.

{name_and_labels}
# The site's own model. With labelled images and no model yet, `consilium-site train site.toml` trains this one. A model that
# you have already (ONNX, torch, nnU-Net, a server, a program): docs/teachers.md, then `consilium-site check site.toml`.
[teacher]
size = 384              # height and width it works at, in pixels
channels = 1            # 1 for gray, 3 for RGB
output = "soft"         # "binary": only masks of 0 and 255 ever leave
network = {{ name = "unet" }}

# The site's labelled images: they are packed once, train the teacher, test the student, and never leave.
[data]
folder = ""             # holds images/ and masks/ with the same file names; "" if there are none
# size = 384
# test-share = 0.2      # kept for tests

# What may leave the site is said in policy.toml, beside this file.

# How the SuperNode reaches the coordinator. `consilium-site join` made the key; it never leaves.
[connection]
{connection}
# Where ClientApp and teacher meet, on this machine only.
[gateway]
address = "unix:gateway.sock"
"""

_POLICY: Final = """# What may leave the site {site}, whatever its people consent to. Every key: docs/settings.md of Consilium;
# what each protects against, and what it does not: docs/threat-model.md. It is the hospital's own to decide, and may be
# another person's file than site.toml. The coordinator proposes nothing here but its own public key; the rest are the defaults.

# Only these signers may show studies. Compare the key with the coordinator's, by telephone or in person. A study that is shown
# still gets no answer before a person here consents to it: consilium-site review, consilium-site approve.
trusted-signers = ["{signer}"]
actions = ["predict", "evaluate", "fine-tune"]   # remove what must never be asked for
levels = 256            # levels of a soft mask that leaves: fewer tell less of the teacher, 2 is a binary mask
sealed = true           # masks leave only encrypted to the study's key: who carries them can not read them
near-duplicate = 0.95   # images that resemble one of the training images more than this are not answered; 1 answers all
min-images = 10         # least test images behind a Dice that leaves
max-images = 100000     # images of one study
mask-budget = 1000000   # soft masks that may ever leave; an image asked again costs nothing
max-students = 4        # different students of one study that are tested or trained on here
# studies = ["first"]   # only studies of these names may be shown
# labels = ["lesion"]   # only these of a study's labels are answered
"""

_README: Final = """# {site} joins {federation}

Needed: Linux, Python 3.11 or later, this package ({version}) installed, and an outgoing TCP connection to {superlink}.
No port has to be opened to the inside.

1. Unpack, and make the key of this site, in a folder of its own:

       consilium-site join {site}.tar.gz --folder {site}

2. Send {site}/{site}.join to the coordinator. Nothing in it is secret. Compare the key's fingerprint, which the command
   printed, by telephone: the coordinator's command prints it too. The archive itself holds an invitation, good once, until
   {expires}: keep it to yourself.
3. Look through {site}/site.toml (labels, teacher, data), and through {site}/policy.toml, which says what may leave. Then
   train a teacher, or check one that you have:

       consilium-site train {site}/site.toml
       consilium-site check {site}/site.toml

4. When the coordinator has accepted the key, look whether all is well, and start:

       consilium-site doctor {site}/site.toml
       consilium-site start {site}/site.toml

5. No study is answered before a person here consents to it. When one was shown, look at it and decide; `revoke` takes the
   consent back, or declines:

       consilium-site review {site}/site.toml
       consilium-site review {site}/site.toml STUDY
       consilium-site approve {site}/site.toml STUDY

To have it started with the machine: `consilium-site.service` (systemd) or `compose.yaml` (Docker); each says how at its
top. What left the site: `consilium-site audit {site}/site.toml`.

| | |
|---|---|
| coordinator's SuperLink | {superlink} |
| certificate authority | {authority} |
| coordinator's signing key | {signer} |
"""

_SERVICE: Final = """# Start the site with the machine, as the user who owns its folder:
#   sudo cp consilium-site.service /etc/systemd/system/consilium-{site}.service
#   sudo systemctl enable --now consilium-{site}
[Unit]
Description=Consilium site {site} of {federation}
Wants=network-online.target
After=network-online.target

[Service]
User=@USER@
ExecStart=@START@
Restart=on-failure
RestartSec=30
TimeoutStopSec=30
UMask=0077
NoNewPrivileges=true
ProtectSystem=full
ProtectKernelTunables=true
ProtectControlGroups=true

[Install]
WantedBy=multi-user.target
"""

_COMPOSE: Final = """# The site in a container. Put consilium-{version}-py3-none-any.whl, the package's wheel, here, then:
#   docker compose up --build --detach
# The site's folder is mounted: its key, teacher, images and audit log stay outside the container.
services:
  site:
    build:
      context: .
      dockerfile_inline: |
        FROM python:3.12-slim
        COPY consilium-*.whl /tmp/
        RUN pip install --no-cache-dir /tmp/consilium-*.whl
    user: "@UID@"
    environment:
      HOME: /site
    command: ["consilium-site", "start", "/site/site.toml"]
    volumes:
      - "@FOLDER@:/site"
    restart: on-failure
    stop_grace_period: 30s
    cap_drop: ["ALL"]
    security_opt: ["no-new-privileges:true"]
"""


def kit_files(facts: KitFacts, labels: Sequence[str], authority_pem: bytes) -> dict[str, bytes]:
    """Write every file of a kit.

    Parameters
    ----------
    facts
        Whom it is for.
    labels
        What the site's masks are to show.
    authority_pem
        The certificate authority that certified the SuperLink.

    Returns
    -------
    dict
        Content by name; the words ``@USER@``, ``@UID@``, ``@FOLDER@`` and ``@START@`` are for `consilium-site join` to fill in.
    """
    words = facts.model_dump() | {
        "version": version("consilium"),
        "expires": f"{facts.expires:%Y-%m-%d %H:%M} UTC",
        "name_and_labels": tomli_w.dumps({"name": facts.site, "labels": list(labels)}),
        "connection": tomli_w.dumps({"superlink": facts.superlink, "ca": AUTHORITY, "node-key": NODE_KEY}),
    }
    texts = {
        KIT_FACTS: facts.model_dump_json(by_alias=True, indent=2) + "\n",
        SITE_SETTINGS: _SITE.format(**words),
        SITE_POLICY: _POLICY.format(**words),
        "README.md": _README.format(**words),
        "consilium-site.service": _SERVICE.format(**words),
        "compose.yaml": _COMPOSE.format(**words),
    }
    return {AUTHORITY: authority_pem, **{name: text.encode() for name, text in texts.items()}}


def pack(files: Mapping[str, bytes], seconds: int) -> bytes:
    """Pack files into a .tar.gz, all at the top, of mode 0600 and no one's; ``seconds`` since 1970 is their date."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=seconds) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as tar,
    ):
        for name in sorted(files):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(files[name]), 0o600, seconds
            tar.addfile(entry, io.BytesIO(files[name]))
    return packed.getvalue()
