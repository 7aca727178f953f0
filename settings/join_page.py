"""The page at https://<server_name>/: what this is, how to join, and with which app. A file for each language."""

from dataclasses import dataclass
from functools import cache
from typing import Self

import segno

from roles import ELEMENT
from settings.deployment import Settings

# What a browser calls a language -> the words of the page. {name} is the server name.
LANGUAGES = {
    "en": {
        "title": "Chat on {name}",
        "what": "This is a homeserver of Matrix, an open network for messages and calls. What you write is "
        "encrypted on its way to the people you write to, and you reach people on every other homeserver, too.",
        "address": "Your address here looks like this:",
        "you": "you",
        "closed": "Accounts are made by the people who run this homeserver: ask them for one.",
        "token": "For a new account you need a registration token from the people who run this homeserver.",
        "open": "Everybody may make an account here.",
        "how": "How to join",
        "install": "Install an app, or open the one in the browser.",
        "server": "Where the app asks for the account provider or homeserver, choose another one and type:",
        "log in": "Log in or make an account. Keep the recovery key that the app gives you: without it, old "
        "messages are lost when you lose your phone.",
        "apps": "Apps",
        "browser": "In the browser",
        "computer": "Windows, macOS, Linux",
        "others": "Others",
        "phone": "Open this page on your phone:",
    },
    "zh": {
        "title": "{name} 上的聊天",
        "what": "这里是一个 Matrix 主服务器。Matrix 是一个开放的消息与通话网络。您写的内容在到达对方之前全程加密，"
        "您也可以与其他任何主服务器上的人联系。",
        "address": "您在这里的地址是这样的：",
        "you": "you",
        "closed": "账号由本服务器的管理员创建，请向他们索取。",
        "token": "注册新账号需要本服务器管理员提供的注册令牌。",
        "open": "任何人都可以在这里注册账号。",
        "how": "如何加入",
        "install": "安装一个应用，或在浏览器中打开网页版。",
        "server": "当应用询问账号提供方或主服务器时，选择“其他”，并输入：",
        "log in": "登录或注册账号。请妥善保存应用给您的恢复密钥：如果手机丢失而没有它，旧消息将无法恢复。",
        "apps": "应用",
        "browser": "浏览器",
        "computer": "Windows、macOS、Linux",
        "others": "其他应用",
        "phone": "用手机打开本页：",
    },
    "de": {
        "title": "Chat auf {name}",
        "what": "Das ist ein Heimserver von Matrix, einem offenen Netz für Nachrichten und Anrufe. Was Sie "
        "schreiben, ist auf dem Weg zu den Empfängern verschlüsselt, und Sie erreichen auch alle auf anderen "
        "Heimservern.",
        "address": "Ihre Adresse hier sieht so aus:",
        "you": "name",
        "closed": "Konten legen die Betreiber dieses Heimservers an: Bitten Sie sie um eines.",
        "token": "Für ein neues Konto brauchen Sie ein Registrierungstoken von den Betreibern dieses Heimservers.",
        "open": "Hier darf jeder ein Konto anlegen.",
        "how": "So machen Sie mit",
        "install": "Installieren Sie eine App, oder öffnen Sie die im Browser.",
        "server": "Wo die App nach dem Kontoanbieter oder Heimserver fragt, wählen Sie einen anderen und tippen ein:",
        "log in": "Melden Sie sich an, oder legen Sie ein Konto an. Bewahren Sie den "
        "Wiederherstellungsschlüssel auf, den die App Ihnen gibt: Ohne ihn sind alte Nachrichten verloren, wenn Sie "
        "das Telefon verlieren.",
        "apps": "Apps",
        "browser": "Im Browser",
        "computer": "Windows, macOS, Linux",
        "others": "Andere",
        "phone": "Diese Seite auf dem Telefon öffnen:",
    },
    "fr": {
        "title": "Discuter sur {name}",
        "what": "Voici un serveur d’accueil de Matrix, un réseau ouvert de messages et d’appels. Ce que vous "
        "écrivez est chiffré jusqu’à vos correspondants, et vous joignez aussi ceux de tous les autres serveurs.",
        "address": "Votre adresse ici ressemble à ceci :",
        "you": "nom",
        "closed": "Les comptes sont créés par les responsables de ce serveur : demandez-leur le vôtre.",
        "token": "Pour créer un compte, il faut un jeton d’inscription donné par les responsables de ce serveur.",
        "open": "Tout le monde peut créer un compte ici.",
        "how": "Comment participer",
        "install": "Installez une application, ou ouvrez celle du navigateur.",
        "server": "Quand l’application demande le fournisseur de compte ou le serveur, choisissez-en un autre "
        "et saisissez :",
        "log in": "Connectez-vous ou créez un compte. Gardez la clé de récupération que l’application vous "
        "donne : sans elle, les anciens messages sont perdus si vous perdez votre téléphone.",
        "apps": "Applications",
        "browser": "Dans le navigateur",
        "computer": "Windows, macOS, Linux",
        "others": "Autres",
        "phone": "Ouvrir cette page sur le téléphone :",
    },
    "es": {
        "title": "Chatear en {name}",
        "what": "Este es un servidor de Matrix, una red abierta de mensajes y llamadas. Lo que usted escribe "
        "va cifrado hasta sus destinatarios, y también puede hablar con personas de todos los demás servidores.",
        "address": "Su dirección aquí tiene esta forma:",
        "you": "nombre",
        "closed": "Las cuentas las crean los responsables de este servidor: pídales la suya.",
        "token": "Para una cuenta nueva necesita un código de registro de los responsables de este servidor.",
        "open": "Cualquiera puede crear una cuenta aquí.",
        "how": "Cómo participar",
        "install": "Instale una aplicación, o abra la del navegador.",
        "server": "Cuando la aplicación pregunte por el proveedor de la cuenta o el servidor, elija otro y escriba:",
        "log in": "Inicie sesión o cree una cuenta. Guarde la clave de recuperación que le da la aplicación: "
        "sin ella, los mensajes antiguos se pierden si pierde el teléfono.",
        "apps": "Aplicaciones",
        "browser": "En el navegador",
        "computer": "Windows, macOS, Linux",
        "others": "Otras",
        "phone": "Abrir esta página en el teléfono:",
    },
}
# Where the apps are: label (in quotes: one of the words) -> links.
_PHONES = {
    "Android": {
        "Google Play": "https://play.google.com/store/apps/details?id=io.element.android.x",
        "F-Droid": "https://f-droid.org/packages/io.element.android.x/",
    },
    "iPhone, iPad": {"App Store": "https://apps.apple.com/app/element-x-secure-chat-call/id1631335820"},
}
_COMPUTERS, _OTHERS = "https://element.io/download", "https://matrix.org/ecosystem/clients/"


# The same in every language.
@cache
def _code(address: str) -> str:
    uri: str = segno.make(address, micro=False).svg_data_uri(scale=4, border=2, light="#fff")
    return uri


@dataclass(frozen=True)
class JoinPage:
    """The page in one language. apps: what people have -> text -> link. code: a QR code with the address of the page, as SVG."""

    language: str
    words: dict[str, str]
    server_name: str
    joining: str
    apps: dict[str, dict[str, str]]
    code: str

    @classmethod
    def of(cls, settings: Settings, language: str, registration: str) -> Self:
        words = LANGUAGES[language]
        apps: dict[str, dict[str, str]] = {}
        if settings.exists("element"):
            chat = settings.domain(ELEMENT)
            apps[words["browser"]] = {chat: f"https://{chat}/"}
        apps |= _PHONES
        apps[words["computer"]] = {"Element": _COMPUTERS}
        apps[words["others"]] = {"matrix.org": _OTHERS}
        return cls(
            language=language,
            words=words,
            server_name=settings.server_name,
            joining=words[registration],
            apps=apps,
            code=_code(f"https://{settings.server_name}/"),
        )

    @property
    def title(self) -> str:
        return self.words["title"].format(name=self.server_name)
