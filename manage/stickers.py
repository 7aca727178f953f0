"""python manage.py NAME stickers ..."""

import base64
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from compat import Refused
from manage.accounts import backends_of, existing
from manage.backends.moderation import Moderation
from manage.backends.stickers import LARGEST_EVENT, Stickers
from manage.homeserver import Account, user_id_of
from manage.machines import Deployment, Machine
from manage.output import as_json, confirm, print_json, print_table, unasked
from manage.pictures import Picture, pictures_in
from manage.rooms import counted, room_id_of
from operations.shell import quoted
from roles import ELEMENT, STICKERS, STICKERS_NAME
from settings.element import Choices

# All that is known, for these commands; what of it the picker shows.
INDEX, SHOWN, PICTURES = f"{STICKERS}/index.json", f"{STICKERS}/packs.json", f"{STICKERS}/pictures"
# Seconds between two lines about what takes long.
NEWS = 5


@dataclass(frozen=True)
class Sticker:
    """A sticker of a pack. url: its mxc address. picture: the copy for the picker."""

    code: str
    body: str
    url: str
    picture: str
    info: Mapping[str, Any]


@dataclass(frozen=True)
class Pack:
    """A pack of stickers. rooms: the IDs of those that have it."""

    name: str
    stickers: tuple[Sticker, ...]
    rooms: tuple[str, ...] = ()

    @property
    def content(self) -> dict[str, Any]:
        """The pack as an event of a room."""
        images = {each.code: {"url": each.url, "body": each.body, "info": dict(each.info)} for each in self.stickers}
        return {"pack": {"display_name": self.name, "usage": ["sticker"]}, "images": images}


@dataclass(frozen=True)
class Index:
    """What was imported. media: SHA-256 -> mxc address, also of what is in no pack any more: it is uploaded once."""

    packs: tuple[Pack, ...] = ()
    media: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str) -> "Index":
        if not text.strip():
            return cls()
        found = json.loads(text)
        packs = [
            Pack(each["name"], tuple(Sticker(**one) for one in each["stickers"]), tuple(each["rooms"]))
            for each in found["packs"]
        ]
        return cls(tuple(packs), found["media"])

    def find(self, name: str) -> Pack | None:
        return next((each for each in self.packs if each.name == name), None)

    def with_pack(self, pack: Pack) -> "Index":
        """The same with a pack, in the place of that of its name."""
        if self.find(pack.name):
            return Index(tuple(pack if each.name == pack.name else each for each in self.packs), self.media)
        return Index((*self.packs, pack), self.media)

    @property
    def pictures(self) -> set[str]:
        return {each.picture for pack in self.packs for each in pack.stickers}

    @property
    def written(self) -> str:
        packs = [
            {"name": pack.name, "stickers": [vars(each) for each in pack.stickers], "rooms": pack.rooms}
            for pack in self.packs
        ]
        return json.dumps({"packs": packs, "media": dict(self.media)}, indent=1, ensure_ascii=False)

    @property
    def shown(self) -> str:
        """What everybody may see: nothing about rooms."""
        packs = [
            {
                "name": pack.name,
                "stickers": [
                    {"body": each.body, "url": each.url, "picture": each.picture, "info": each.info}
                    for each in pack.stickers
                ],
            }
            for pack in self.packs
        ]
        return json.dumps({"packs": packs}, ensure_ascii=False)


class Shop:
    """The stickers of a deployment: the machine with the picker, and the homeserver."""

    def __init__(self, web: Machine, homeserver: Machine) -> None:
        self.web, self.homeserver = web, homeserver
        self.accounts, self.synapse = backends_of(homeserver)
        self.stickers = Stickers(self.synapse)
        self.index = Index.read("\n".join(web.run(f"[ ! -e {INDEX} ] || cat {INDEX}")))

    @property
    def address(self) -> str:
        return f"https://{self.web.settings.name_of(ELEMENT, STICKERS_NAME)}"

    def pack(self, name: str) -> Pack:
        """The pack of this name. Raises Refused."""
        if found := self.index.find(name):
            return found
        there = ", ".join(each.name for each in self.index.packs) or "none"
        raise Refused(f"there is no pack {name!r}; there are: {there}")

    def room_id(self, room: str) -> str:
        return room_id_of(Moderation(self.synapse), self.homeserver, room)

    def save(self, index: Index) -> None:
        """Write what was imported, for these commands and for the picker; copies that no pack has any more go."""
        self._write(INDEX, index.written.encode(), "600")
        self._write(SHOWN, index.shown.encode(), "644")
        if gone := self.index.pictures - index.pictures:
            self.web.run(f"cd {PICTURES} && rm -f {quoted(*sorted(gone))}")
        self.index = index

    def copy(self, picture: Picture) -> None:
        """Put a copy for the picker on the machine."""
        self._write(f"{PICTURES}/{picture.file}", picture.content, "644")

    def _write(self, path: str, content: bytes, mode: str) -> None:
        folder, new = path.rpartition("/")[0], f"{path}.new"
        self.web.run(
            f"umask 077 && install -d -m 755 {STICKERS} {folder} && base64 --decode >{new} && chmod {mode} {new} && "
            f"mv {new} {path}",
            base64.encodebytes(content).decode(),
        )


@contextmanager
def shop_of(deployment: Deployment) -> Iterator[Shop]:
    """The stickers of a deployment. Raises Refused."""
    web, homeserver = deployment.machine("element"), deployment.machine("synapse")
    if not web.settings.section(Choices).stickers:
        raise Refused(f"{deployment.name} has no page for stickers: set stickers = True, and deploy")
    try:
        shop = Shop(web, homeserver)
        try:
            yield shop
        finally:
            shop.accounts.close()
    finally:
        web.close()
        homeserver.close()


class _Progress:
    """Says now and then how far something is."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.next = what, total, time.monotonic() + NEWS

    def __call__(self, done: int) -> None:
        if time.monotonic() >= self.next:
            self.next = time.monotonic() + NEWS
            click.echo(f"  {done} of {self.total} {self.what}", err=True)


def _name(_context: click.Context, _parameter: click.Parameter, name: str) -> str:
    if not 1 <= len(name.encode()) <= 100 or not name.isprintable() or name.strip() != name:
        raise click.BadParameter("a pack is called by 1 to 100 bytes of text, without spaces at the ends")
    return name


@click.group()
def stickers() -> None:
    """Stickers: packs of pictures, and the picker with which people choose one."""


@stickers.command(name="import")
@click.argument("source", metavar="DIRECTORY|ZIP")
@click.option("--name", metavar="PACK", required=True, callback=_name, help="What the pack is called.")
@click.option("--room", "rooms", metavar="ROOM", multiple=True, help="Also write it into this room; may be repeated.")
@as_json
@click.pass_obj
def import_pack(deployment: Deployment, source: str, name: str, rooms: Sequence[str], as_json: bool) -> None:
    """Make a pack of the pictures in a directory or ZIP archive: PNG, WebP and GIF, also animated.

    The names of the files are what the stickers are called. A pack of this name becomes what is given. A picture is uploaded
    once.
    """
    path = deployment.called_in / Path(source).expanduser()
    if not path.exists():
        raise Refused(f"there is no {path}")
    pictures, left_out = pictures_in(path)
    with shop_of(deployment) as shop:
        before = shop.index.find(name)
        room_ids = dict.fromkeys([*(before.rooms if before else ()), *map(shop.room_id, rooms)])
        planned = Pack(name, tuple(_sticker(each, shop.index.media.get(each.sha256, "x" * 64)) for each in pictures))
        if room_ids and len(json.dumps(planned.content, ensure_ascii=False).encode()) > LARGEST_EVENT:
            raise Refused(f"{len(pictures)} pictures are too many for the pack of a room: make several packs")
        media, uploaded = dict(shop.index.media), 0
        progress = _Progress("pictures", len(pictures))
        there = shop.index.pictures
        try:
            for number, each in enumerate(pictures):
                if each.sha256 not in media:
                    media[each.sha256] = shop.stickers.upload(each.content, each.type)
                    uploaded += 1
                if each.file not in there:
                    shop.copy(each)
                progress(number + 1)
        finally:
            # Also what an interrupted import has uploaded.
            if uploaded:
                shop.save(Index(shop.index.packs, media))
        pack = Pack(name, tuple(_sticker(each, media[each.sha256]) for each in pictures), tuple(room_ids))
        # First, so that the next import tries again what was refused.
        for room_id in room_ids:
            if not before or before.content != pack.content or room_id not in before.rooms:
                shop.stickers.write_pack(room_id, name, pack.content)
        shop.save(shop.index.with_pack(pack))
    if as_json:
        found = {"name": name, "stickers": len(pictures), "uploaded": uploaded, "rooms": list(room_ids)}
        return print_json({**found, "left_out": left_out, "changed": before != pack})
    where = f", also in {counted(len(room_ids), 'room')}" if room_ids else ""
    new = f"{uploaded} of them uploaded" if uploaded else "none of them new"
    click.echo(f"The pack {name} has {counted(len(pictures), 'sticker')}, {new}{where}.")
    if left_out:
        rest = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        click.echo(f"manage: left out, as they are not PNG, WebP or GIF: {', '.join(left_out[:3])}{rest}", err=True)


def _sticker(picture: Picture, url: str) -> Sticker:
    info = {"w": picture.width, "h": picture.height, "mimetype": picture.type, "size": len(picture.content)}
    return Sticker(picture.code, picture.body, url, picture.file, info)


@stickers.command(name="list")
@as_json
@click.pass_obj
def list_packs(deployment: Deployment, as_json: bool) -> None:
    """List the packs."""
    with shop_of(deployment) as shop:
        packs = shop.index.packs
    if as_json:
        print_json([{"name": each.name, "stickers": len(each.stickers), "rooms": each.rooms} for each in packs])
    elif packs:
        rows = [(each.name, str(len(each.stickers)), ", ".join(each.rooms)) for each in packs]
        print_table(("PACK", "STICKERS", "ROOMS"), rows)
    else:
        click.echo("There are no packs: `stickers import` makes one.")


@stickers.command()
@click.argument("pack")
@unasked
@as_json
@click.pass_obj
def remove(deployment: Deployment, pack: str, yes: bool, as_json: bool) -> None:
    """Take a pack away, from the picker and from its rooms. Stickers that were sent stay."""
    with shop_of(deployment) as shop:
        found = shop.pack(pack)
        where = f" and from {counted(len(found.rooms), 'room')}" if found.rooms else ""
        confirm(
            f"The pack {pack} with {counted(len(found.stickers), 'sticker')} goes from the picker{where}. Go on?", yes
        )
        for room_id in found.rooms:
            shop.stickers.write_pack(room_id, pack, {})
        shop.save(Index(tuple(each for each in shop.index.packs if each != found), shop.index.media))
    if as_json:
        return print_json({"name": pack, "rooms": found.rooms, "changed": True})
    click.echo(f"The pack {pack} is gone from the picker{where}.")


@stickers.command()
@click.argument("account", required=False)
@click.option("--all", "everybody", is_flag=True, help="All accounts that are in use.")
@as_json
@click.pass_obj
def enable(deployment: Deployment, account: str | None, everybody: bool, as_json: bool) -> None:
    """Give an account the picker, in Element Web and the classic apps.

    An account that has another picker keeps that one.
    """
    _set_picker(deployment, account, everybody, True, as_json)


@stickers.command()
@click.argument("account", required=False)
@click.option("--all", "everybody", is_flag=True, help="All accounts that are in use.")
@as_json
@click.pass_obj
def disable(deployment: Deployment, account: str | None, everybody: bool, as_json: bool) -> None:
    """Take the picker away from an account."""
    _set_picker(deployment, account, everybody, False, as_json)


def _set_picker(deployment: Deployment, account: str | None, everybody: bool, wanted: bool, as_json: bool) -> None:
    if everybody == bool(account):
        raise click.UsageError("give either an account or --all")
    done: dict[str, list[str]] = {"changed": [], "unchanged": [], "other": []}
    with shop_of(deployment) as shop:
        users = _accounts(shop, account)
        progress = _Progress("accounts", len(users))
        for number, user in enumerate(users):
            done[shop.stickers.set_picker(user.user_id, shop.address, wanted)].append(user.user_id)
            progress(number + 1)
    if as_json:
        return print_json({"enabled": wanted, **done})
    has = "has the picker" if wanted else "does not have the picker"
    if account:
        [[state, _]] = [(key, value) for key, value in done.items() if value]
        now = {
            "changed": f"{has} now" if wanted else f"{has} any more",
            "unchanged": f"{has}{' already' if wanted else ''}",
        }
        click.echo(f"{users[0].user_id} {now.get(state, 'has another picker, and keeps it; nothing was changed')}.")
        return
    line = f"{counted(len(done['changed']), 'account')} {'given the picker' if wanted else 'without the picker now'}"
    kept = f"; {counted(len(done['other']), 'account')} with another one, as before" if done["other"] else ""
    click.echo(f"{line}; {len(done['unchanged'])} as before{kept}.")


def _accounts(shop: Shop, account: str | None) -> list[Account]:
    if account is None:
        return [each for each in shop.accounts.all() if not each.deactivated and not each.locked]
    found = existing(shop.accounts, user_id_of(account, shop.homeserver.settings.server_name))
    if found.deactivated:
        raise Refused(f"{found.user_id} is deactivated")
    return [found]
