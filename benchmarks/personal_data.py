"""Personal data: recall and precision for each kind on 2,000 made lines, English and Chinese, with hard negatives; and lines to judge.

Truth is known because the lines are made here: templates whose places are filled with values that are generated with their checksums,
beside lines that look alike and hold no personal data (order numbers, versions, hashes, dates, prices, failing checksums). A value
counts as found where something of its kind covers nine tenths of it and is not more than twice as long.

    .venv/bin/python benchmarks/personal_data.py [--json] [--seed 0] [--lines 2000] [--misses]
    .venv/bin/python benchmarks/personal_data.py --judge FOLDER [--json]     200 lines of real chats in which something was found

With `--judge`, FOLDER holds the data (chitchat, irc, lccc). What is printed then is for one's own eyes: it shows what people wrote.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from _common import Line as Comparison
from _common import say

CHECKED = ("card", "iban", "id_number")  # types with a checksum
RECALL, PRECISION, CHECKSUMS = 0.95, 0.90, 0.99  # what is asked for
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Line:
    """A text and what of it is personal: ``(kind, begin, end)``."""

    text: str
    truth: tuple[tuple[str, int, int], ...]


@dataclass
class Score:
    """Of one kind: values that are there, values that were found, things that were found, and those of them that are right."""

    values: int = 0
    recalled: int = 0
    found: int = 0
    right: int = 0

    @property
    def recall(self) -> float:
        return self.recalled / self.values if self.values else 1.0

    @property
    def precision(self) -> float:
        return self.right / self.found if self.found else 1.0


@dataclass
class Scores:
    """Scores for each kind, and what went wrong."""

    kinds: dict[str, Score] = field(default_factory=dict)
    missed: list[tuple[str, str]] = field(default_factory=list)
    wrong: list[tuple[str, str, str]] = field(default_factory=list)

    def all(self, kinds: tuple[str, ...] | None = None) -> Score:
        """Over these kinds, or all."""
        some = [score for name, score in self.kinds.items() if kinds is None or name in kinds]
        return Score(*(sum(getattr(one, name) for one in some) for name in ("values", "recalled", "found", "right")))


def lines(seed: int, count: int) -> list[Line]:
    """Made lines: six in ten hold something, in English and Chinese alike."""
    draw = random.Random(seed)
    maker = _Maker(draw)
    kinds = sorted(POSITIVE)
    made = []
    for number in range(count):
        if number % 10 < 6:
            kind = kinds[number // 10 % len(kinds)] if draw.random() < 0.9 else draw.choice(kinds)
            made.append(maker.line(draw.choice(POSITIVE[kind])))
        else:
            made.append(maker.line(draw.choice(NEGATIVE)))
    return made


def scored(made: list[Line], find: Callable[[str], list[tuple[str, int, int]]]) -> Scores:
    """What `find` finds of what is there."""
    scores = Scores({kind: Score() for kind in sorted(POSITIVE)})
    for line in made:
        found = find(line.text)
        for kind, begin, end in line.truth:
            score = scores.kinds[kind]
            score.values += 1
            if any(one[0] == kind and _covers(one, begin, end) for one in found):
                score.recalled += 1
            else:
                scores.missed.append((kind, line.text))
        for kind, begin, end in found:
            score = scores.kinds.setdefault(kind, Score())
            score.found += 1
            if any(own[0] == kind and _covers((kind, begin, end), *own[1:]) for own in line.truth):
                score.right += 1
            else:
                scores.wrong.append((kind, line.text[begin:end], line.text))
    return scores


def _covers(found: tuple[str, int, int], begin: int, end: int) -> bool:
    common = min(found[2], end) - max(found[1], begin)
    return common >= 0.9 * (end - begin) and found[2] - found[1] <= 2 * (end - begin)


# ---------------------------------------------------------------------------------------------------------------------- values

def words(text: str) -> list[str]:
    return text.split()


FIRST = words("james mary robert patricia michael linda david susan chloe oliver priya ahmed sofia lukas noah emma hannah ivan")
LAST = words("smith johnson brown garcia miller davis martinez lopez wilson moore taylor lee patel kowalski nguyen o'connor")
HOSTS = words("gmail.com yahoo.co.uk example.org mail.uni-bonn.de outlook.com qq.com 163.com acme.io company.com.cn proton.me")
SURNAMES, GIVEN = "王李张刘陈杨黄赵吴周徐孙马朱胡郭何林罗郑谢", "伟芳娜敏静丽强磊军洋勇艳杰娟涛明超秀英华玉兰红波"
CITIES = words("北京市朝阳区 上海市浦东新区 广东省深圳市南山区 浙江省杭州市西湖区 成都市武侯区 武汉市洪山区 江苏省南京市鼓楼区")
STREETS = ("建国路", "中山北路", "人民大道", "科技南路", "解放街", "文三路", "延安西路", "和平里大街", "珞喻路", "幸福巷")
ESTATES = ("阳光小区", "翡翠花园", "世纪公寓", "金色家园", "和平新村")
ROADS = words("Main Oak Maple Washington Lake Hill Cedar Park Church Victoria King Elm")
TYPES = words("Street St Avenue Ave Road Rd Boulevard Lane Drive Court")
TOWNS = (("Springfield", "IL", "62704"), ("Austin", "TX", "78701"), ("Portland", "OR", "97205"), ("Boston", "MA", "02108"))
ISSUERS = (("4", 14), ("51", 13), ("37", 12), ("6011", 11), ("62", 13), ("6222", 14))
IBANS = (
    ("DE", 18 * "#"), ("FR", 23 * "#"), ("NL", "ABNA##########"), ("GB", "NWBK##############"), ("ES", 20 * "#"), ("CH", 17 * "#"),
    ("IT", "X" + 22 * "#"), ("AT", 16 * "#"), ("NO", 11 * "#"),
)  # fmt: skip
MONTHS = words("January February March April May June July August September October November December")
AREAS = (212, 310, 415, 512, 617, 646, 702, 713, 802, 917)


class _Maker:
    """Fills the slots of templates; each slot is a method of that name, what is personal is named as its kind."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw

    def line(self, template: str) -> Line:
        text, truth, last = "", [], 0
        for slot in _SLOT.finditer(template):
            text += template[last : slot.start()]
            value = str(getattr(self, slot[1])())
            kind = slot[1].partition("__")[0]
            if kind in POSITIVE:
                truth.append((kind, len(text), len(text) + len(value)))
            text += value
            last = slot.end()
        return Line(text + template[last:], tuple(truth))

    def form(self, *forms: str) -> str:
        """One of the forms, with digits for ``#`` and digits from 1 to 9 for ``_``."""
        return re.sub("[#_]", lambda mark: self.draw.choice("0123456789" if mark[0] == "#" else "123456789"), self.draw.choice(forms))

    def day(self, *forms: str) -> str:
        """A date since 1950 in one of the forms."""
        year, month, day = self.draw.randint(1950, 2025), self.draw.randint(1, 12), self.draw.randint(1, 28)
        return self.draw.choice(forms).format(y=year, m=month, d=day, month=MONTHS[month - 1])

    # ------------------------------------------------------------------------------------------------------- what is personal

    def email(self) -> str:
        first, last = self.draw.choice(FIRST), self.draw.choice(LAST).replace("'", "")
        local = self.form(f"{first}.{last}", f"{first}###", f"{first[0]}-{last}", f"{first}+shop", f"{last}-{first}", "_#######")
        return f"{local.title() if self.draw.random() < 0.1 else local}@{self.draw.choice(HOSTS)}"

    def email__spelt(self) -> str:
        first, last = self.draw.choice(FIRST), self.draw.choice(LAST).replace("'", "")
        return self.form(f"{first}{last} at gmail dot com", f"{first}.{last}[at]example[dot]org", f"{first} (at) company (dot) com")

    def phone__us(self) -> str:
        area, exchange = self.draw.choice(AREAS), self.draw.choice(("234", "345", "456", "567", "678", "765", "876"))
        return self.form(
            f"({area}) {exchange}-####", f"{area}-{exchange}-####", f"{area}.{exchange}.####", f"+1 {area} {exchange} ####",
            f"1-{area}-{exchange}-####",
        )  # fmt: skip

    def phone__bare(self) -> str:
        return self.form(f"{self.draw.choice(AREAS)}{self.draw.choice((234, 345, 456, 678, 765))}####")

    def phone__cn(self) -> str:
        head = self.draw.choice(("138", "139", "150", "152", "177", "186", "189", "199"))
        return self.form(
            f"{head}########", f"{head}########", f"{head} #### ####", f"{head}-####-####", f"+86 {head}########",
            f"+86-{head}-####-####",
        )  # fmt: skip

    def phone__land(self) -> str:
        return self.form("010-6#######", "021-5#######", "0755-2#######", "(020)3#######", "0571-8#######", "400-6##-####")

    def phone__local(self) -> str:
        return self.form("6#######", "8#######")

    def phone__abroad(self) -> str:
        return self.form("+44 20 7### ####", "+49 30 2#######", "+33 6 _# ## ## ##", "+81 90-1###-####", "+4474001#####")

    def card(self) -> str:
        number = self.luhn(self.form(*(first + count * "#" for first, count in ISSUERS)))
        if len(number) == 15:
            return self.form(number, f"{number[:4]} {number[4:10]} {number[10:]}")
        return self.form(number, grouped(number, " "), grouped(number, "-"))

    def luhn(self, first: str, off: int = 0) -> str:
        doubled = [int(digit) * (2 if place % 2 == 0 else 1) for place, digit in enumerate(reversed(first))]
        return f"{first}{(-sum(sum(divmod(one, 10)) for one in doubled) + off) % 10}"

    def iban(self) -> str:
        return self.iban_of(0)

    def iban_of(self, off: int) -> str:
        country, form = self.draw.choice(IBANS)
        account = self.form(form)
        rest = int("".join(str(int(character, 36)) for character in f"{account}{country}00")) % 97
        number = f"{country}{(98 - rest + off - 1) % 97 + 1:02d}{account}"
        return self.form(number, grouped(number, " "))

    def ip(self) -> str:
        v4 = ".".join(str(self.draw.randint(*own)) for own in ((31, 126), (0, 255), (0, 255), (1, 254)))
        groups = [f"{self.draw.getrandbits(16):x}" for _ in range(8)]
        short = f"2001:db8:{groups[0]}::1{groups[1][:3]}:{groups[2]}"
        return self.form(v4, v4, f"192.168.{self.draw.randint(0, 9)}._#", ":".join(groups), short)

    def id_number(self) -> str:
        return self.resident(0)

    def resident(self, off: int) -> str:
        area = self.draw.choice(("110105", "310115", "440305", "330106", "510107", "420111", "320106", "610113", "230102"))
        first = self.day(area + "{y}{m:02d}{d:02d}") + self.form("###")
        weights = [2 ** (17 - place) % 11 for place in range(17)]  # another statement of MOD 11-2 than the one that is tested
        return first + "10X98765432"[(sum(int(d) * w for d, w in zip(first, weights, strict=True)) + off) % 11]

    def id_number__us(self) -> str:
        return f"{self.draw.randint(1, 665):03d}-{self.draw.randint(1, 99):02d}-{self.draw.randint(1, 9999):04d}"

    def birth_date(self) -> str:
        return self.day("{y}-{m:02d}-{d:02d}", "{month} {d}, {y}", "{d} {month} {y}", "{m}/{d}/{y}", "{d}.{m}.{y}")

    def birth_date__zh(self) -> str:
        return self.day("{y}年{m}月{d}日", "{y}-{m:02d}-{d:02d}", "{y}.{m}.{d}", "{m}月{d}号")

    def address(self) -> str:
        street = self.form(f"_### {self.draw.choice(ROADS)}", f"_## N {self.draw.choice(ROADS)}", f"_# West {self.draw.choice(ROADS)}")
        town, state, code = self.draw.choice(TOWNS)
        rest = self.form("", ", Apt _#", f", {town}, {state} {code}", f", {town}", f" Apt _B, {town}, {state} {code}")
        return f"{street} {self.draw.choice(TYPES)}{rest}"

    def address__plain(self) -> str:
        return self.form(*(f"_## {self.draw.choice(ROADS).lower()} {kind}" for kind in ("street", "avenue", "road", "lane")))

    def address__zh(self) -> str:
        house = self.form("", "_号楼__0_室", "1_号楼___室", "_栋_单元_0_", "1_层")
        city, street, estate = self.draw.choice(CITIES), self.draw.choice(STREETS), self.draw.choice(ESTATES)
        return self.form(f"{city}{street}_#号{house}", f"{city}{estate}1_栋___室", f"{street}_##号", f"{city}{street}甲_号")

    def name(self) -> str:
        first, last = self.draw.choice(FIRST).title(), self.draw.choice(LAST).title()
        return self.form(f"{first} {last}", first, f"{first} {self.draw.choice('ABCD')}. {last}")

    def name__lower(self) -> str:
        return self.draw.choice(FIRST)

    def name__last(self) -> str:
        last = self.draw.choice(LAST).title()
        return self.form(last, f"{self.draw.choice(FIRST).title()} {last}")

    def name__zh(self) -> str:
        return self.draw.choice(SURNAMES) + "".join(self.draw.choices(GIVEN, k=self.draw.choice((1, 2, 2))))

    def name__surname(self) -> str:
        return self.draw.choice(SURNAMES)

    def account(self) -> str:
        return self.form("_#####", "_########", "_#########")

    def account__word(self) -> str:
        return f"{self.draw.choice(FIRST)}_{self.draw.choice(LAST)}{self.draw.randint(10, 99)}".replace("'", "")

    # ------------------------------------------------------------------------------------------------- what only looks like it

    def order(self) -> str:
        numbers = ("_" + count * "#" for count in (7, 11, 13))
        return self.form(*numbers, "###-#######-#######", "138########", "186########", self.phone__bare())

    def failing_card(self) -> str:
        number = self.luhn(self.form("4" + 14 * "#"), off=self.draw.randint(1, 9))
        return self.form(number, grouped(number, " "))

    def failing_iban(self) -> str:
        return self.iban_of(self.draw.randint(1, 50))

    def failing_id(self) -> str:
        return self.resident(self.draw.randint(1, 10))

    def version(self) -> str:
        return ".".join(str(self.draw.randint(0, 12)) for _ in range(self.draw.choice((3, 4, 4))))

    def hex(self) -> str:
        return f"{self.draw.getrandbits(160):040x}"[: self.draw.choice((32, 40, 12))]

    def uuid(self) -> str:
        own = f"{self.draw.getrandbits(128):032x}"
        return "-".join((own[:8], own[8:12], own[12:16], own[16:20], own[20:]))

    def isbn(self) -> str:
        return self.form("978-#-###-#####-#", "978##########", "0-###-#####-#")

    def date(self) -> str:
        return self.day("{y}-{m:02d}-{d:02d}", "{m}/{d}/{y}", "{y}年{m}月{d}日", "{y}{m:02d}{d:02d}")

    def clock(self) -> str:
        return f"{self.draw.randint(0, 23):02d}:{self.draw.randint(0, 59):02d}:{self.draw.randint(0, 59):02d}"

    def price(self) -> str:
        return self.form("$_,###.99", "$_#.99", "¥_###.00", "_##,###,###")

    def large(self) -> str:
        return self.form(*("_" + count * "#" for count in range(8, 19)))

    def decimal(self) -> str:
        return f"{self.draw.random():.16f}"

    def small(self) -> int:
        return self.draw.randint(2, 90)

    def stamp(self) -> str:
        return self.form("17########", "16###########")

    def mac(self) -> str:
        return ":".join(f"{self.draw.getrandbits(8):02x}" for _ in range(6))


def grouped(number: str, glue: str) -> str:
    """A number in groups of four."""
    return glue.join(number[place : place + 4] for place in range(0, len(number), 4))


# ------------------------------------------------------------------------------------------------------------------- templates

POSITIVE: dict[str, list[str]] = {
    "email": [
        "You can write to {email} any time.", "my email's {email}, ok?", "{email}", "contact: <{email}>",
        "cc {email} and {email} please", "发到我邮箱{email}吧", "邮箱：{email}，谢谢", "请把简历发至{email}。",
        "Send it over ({email}), and call me on {phone__us}.", "it's {email__spelt} if you need it",
        "ping me under {email__spelt}, thx", "From: {email}\nSubject: hi", "我的QQ邮箱是{email}",
    ],
    "phone": [
        "Give me a ring at {phone__us}", "my number is {phone__us}, text me", "{phone__us}", "tel: {phone__bare}",
        "you can reach him on {phone__abroad} after six", "我的电话是{phone__cn}", "手机：{phone__cn}", "{phone__cn}，打给我",
        "有事打{phone__cn}找我就行", "公司座机{phone__land}", "客服热线{phone__land}，周末也上班",
        "加我微信吧，和手机同号{phone__cn}", "call {phone__bare} or {phone__us}", "家里电话{phone__local}",
        "传真：{phone__land}", "Phone {phone__abroad}", "fax {phone__us} attn. Lee", "他换号了，新的是{phone__cn}",
        "Text {phone__us} for the gate code", "联系人电话 {phone__cn} / {phone__land}",
    ],
    "card": [
        "My card number is {card}, expires 04/27", "{card}", "please charge {card} for it", "卡号{card}",
        "我的银行卡号是{card}，工商银行", "打到这个卡上：{card}", "Visa {card} was declined",
        "the one ending there: {card} thanks", "信用卡 {card} 被锁了",
    ],
    "iban": [
        "Please transfer it to {iban}.", "IBAN: {iban}", "{iban}", "our account is {iban} at the savings bank",
        "汇款账号 {iban}，谢谢", "Use {iban} (BIC follows)",
    ],
    "ip": [
        "I can't ping {ip} from here", "ssh root@{ip} hangs", "connection from {ip} port 22", "my ip is {ip}",
        "服务器地址是{ip}", "{ip} - - GET /index.html", "http://{ip}/admin gives 403", "the box at {ip} is down",
        "把{ip}加到白名单", "nameserver {ip}",
    ],
    "id_number": [
        "我的身份证号是{id_number}", "身份证：{id_number}，姓名：{name__zh}", "{id_number}", "证件号码{id_number}已登记",
        "Chinese id {id_number}", "帮我查一下{id_number}的社保", "SSN {id_number__us}", "my social is {id_number__us} ok",
        "{id_number__us}",
    ],
    "birth_date": [
        "I was born on {birth_date}", "DOB: {birth_date}", "date of birth {birth_date}", "my birthday is {birth_date}",
        "Birthday: {birth_date}, so I'm an adult", "我的生日是{birth_date__zh}", "出生日期：{birth_date__zh}",
        "她{birth_date__zh}出生的", "生日{birth_date__zh}，快到了", "他出生于{birth_date__zh}",
    ],
    "address": [
        "I live at {address}", "Ship it to {address}.", "{address}", "we moved to {address} last year",
        "my address is {address__plain}", "meet me at {address__plain}", "我家住在{address__zh}", "地址：{address__zh}",
        "寄到{address__zh}，收件人{name__zh}", "快递送{address__zh}", "我在{address__zh}等你", "公司位于{address__zh}。",
    ],
    "name": [
        "My name is {name}.", "hi, my name is {name__lower}, what's yours", "my name's {name}", "This is {name} speaking",
        "Please ask Mr. {name__last} about it", "Dr. {name__last} will see you now", "Name: {name}",
        "Mrs {name__last} called twice", "I'm {name} from Acme support", "我叫{name__zh}", "你好，我叫{name__zh}，今年二十岁",
        "我的名字是{name__zh}。", "收件人：{name__zh}", "{name__surname}先生，您的快递到了", "请转告{name__surname}女士",
        "本人姓名{name__zh}，女",
    ],
    "account": [
        "加我QQ{account}", "QQ：{account}", "我的微信号是{account__word}", "微信：{account__word}",
        "my skype name is {account__word}", "see https://twitter.com/{account__word}", "find me: instagram.com/{account__word}",
        "qq号 {account} 加我", "ftp://{account__word}@files.example.org/home", "wechat id: {account__word}",
    ],
}  # fmt: skip
NEGATIVE = [
    "Your order {order} has shipped.", "order no. {order}", "订单号{order}已发货", "您的快递单号是{order}", "运单：{order}",
    "ticket #{order} is closed", "invoice {order} dated {date}", "the checksum is {hex}", "commit {hex} broke it",
    "session {uuid} expired", "ISBN {isbn} is a good read", "书号{isbn}", "version {version} is out",
    "upgrade to v{version} first", "软件版本{version}", "升级到{version}以后就好了", "we still run release {version}",
    "it cost {price} on {date}", "一共{price}元，{date}付的", "meeting at {clock} on {date}", "{date} {clock} ERROR disk full",
    "the value was {decimal} this time", "pi is 3.14159265358979", "a serial like {failing_card} never works",
    "number {failing_card} fails the check", "{failing_iban} is mistyped", "{failing_id}这个数不对", "编号{failing_id}",
    "row {large} of the table", "{large} bytes copied", "一共有{large}个文件", "timestamp {stamp}", "时间戳{stamp}",
    "mac {mac} joined", "std::vector<int> and abc::def", "use git@github.com:acme/tool.git", "save it as icon@2x.png",
    "@support please help", "3 - 2 was the score, 45 minutes in", "it's {small} minutes down the road",
    "about {small} miles from the park", "坐{small}路公交车到中山路", "人民路很堵，走解放路吧", "我叫了外卖，{small}块钱",
    "我叫他来的", "她叫我别去", "my name is not important", "what is your name?", "他的名字我忘了", "老师同学们好",
    "born to run, {date} was great", "生日快乐！", "happy birthday to you, see you at {clock}",
    "happy with the {small} street food stalls", "I love 5th avenue", "the doctor said so, sir", "Mr. or Mrs., who cares",
    "房间号{small}，会员{large}号", "第{small}条规定，共{large}字", "flight CA{small}1 lands at {clock}",
    "pin {small}45 works, code {small}77", "isbn:{isbn}", "batch {order} failed, retry batch {order}",
    "tracking number {order}", "it weighs {small}.{small} kg", "127.0.0.1 is localhost and 0.0.0.0 is any",
    "netmask 255.255.255.0", "section {version} of the manual", "sum of {large} and {large} overflowed",
    "bug {large} was fixed in {version}", "可以给我打个电话吗", "加个微信吧", "你QQ多少", "what's your phone number?",
    "send me an email later", "I read {small} pages", "他住在北京", "we live in Boston", "验证码{small}4{small}，请勿泄露",
    "{price} vs {price}", "ratio {small}:{small}:{small}", "error code {order}", "型号{order}缺货",
    "group {small}-{small}-{small} won", "resolution 1920x1080 at {small} Hz", "股票代码600{small}9涨了",
    "x = {large} * {decimal}", "license {uuid}", "the road is closed, take the lane on the left",
    "{small} people at the court today", "路上堵了{small}分钟", "这小区{small}块一平",
]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------------ real chats


def chats(folder: Path) -> Iterator[tuple[str, str]]:
    """Messages of real people: the source and the text."""
    with gzip.open(folder / "en_dialogue" / "chitchat_part.json.gz", "rt", encoding="utf-8") as file:
        for talk in json.load(file).values():
            yield from (("chitchat", item["text"]) for burst in talk["messages"] for item in burst)
    for path in sorted((folder / "messy" / "irc").glob("*.raw.txt")):
        for row in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if said := re.fullmatch(r"\[\d\d:\d\d\] <[^>]*> (.*)", row):
                yield "irc", said[1]
    with gzip.open(folder / "zh_dialogue" / "lccc_toy_train.txt.gz", "rt", encoding="utf-8") as file:
        for row in file:
            yield from (("lccc", re.sub(r"(?<=[^ -~]) | (?=[^ -~])", "", turn.strip())) for turn in row.split("\t"))


# Lines in which something may have been missed: many digits, an @, or the words that people use around such things.
_SUSPICIOUS = re.compile(
    r"\d[\d .-]{5,}\d|@\w|\b(?:my name|i'?m called|my (?:number|email|address|birthday)|i live (?:at|on)|call me at|born on)\b"
    r"|phone number"
    r"|我叫|名字是|我住|生日是|电话|手机号|微信|QQ|地址|邮箱",
    re.I,
)


def to_judge(folder: Path, seed: int, count: int) -> tuple[list[dict[str, object]], dict[str, Counter[str]]]:
    """Drawn finds in their lines, marked; lines to fill up the count where something may have been missed; and how many there are.

    A find is drawn at most three times for each kind and value, so that one that is repeated does not stand for all.
    """
    from chattune.dialogs.personal import find

    finds: list[dict[str, object]] = []
    others: list[dict[str, object]] = []
    seen: dict[str, Counter[str]] = {}
    values: Counter[tuple[str, str]] = Counter()
    for source, text in chats(folder):
        own = seen.setdefault(source, Counter())
        own["lines"] += 1
        found = find(text)
        for one in found:
            own[one.kind] += 1
            value = (one.kind, text[one.begin : one.end])
            values[value] += 1
            if values[value] <= 3:
                marked = f"{text[: one.begin]}⟦{value[1]}⟧{text[one.end :]}"
                finds.append({"source": source, "kind": one.kind, "line": marked})
        if not found and _SUSPICIOUS.search(text):
            own["suspicious"] += 1
            others.append({"source": source, "kind": "nothing", "line": text})
    draw = random.Random(seed)
    draw.shuffle(finds)
    draw.shuffle(others)
    return [*finds[:count], *others[: max(0, count - len(finds))]], seen


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="one JSON object a line")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--lines", type=int, default=2000)
    options.add_argument("--misses", action="store_true", help="print what was missed and what was wrong")
    options.add_argument("--judge", type=Path, metavar="FOLDER", help="draw finds of real chats, for one's own eyes")
    chosen = options.parse_args()
    if chosen.judge:
        drawn, seen = to_judge(chosen.judge, chosen.seed, 200)
        for item in drawn:
            print(json.dumps(item, ensure_ascii=False) if chosen.json else f"{item['source']:9} {item['kind']:10} {item['line']}")
        for source, counts in seen.items():
            print(json.dumps({"source": source, **counts}) if chosen.json else f"{source}: {dict(counts)}")
        return
    from chattune.dialogs.personal import find

    made = lines(chosen.seed, chosen.lines)
    find("warm up +1 650 253 0000")
    began = time.perf_counter()
    scores = scored(made, lambda text: [(one.kind, one.begin, one.end) for one in find(text)])
    speed = {"lines": len(made), "us_per_line": round(1e6 * (time.perf_counter() - began) / len(made), 1)}
    rows = [("all", scores.all(), (RECALL, PRECISION)), ("checksums", scores.all(CHECKED), (CHECKSUMS, CHECKSUMS))]
    for kind, score, bars in (*rows, *((kind, score, None) for kind, score in scores.kinds.items())):
        if not chosen.json:
            found = f"{score.found:5} found, precision {score.precision:.3f}"
            print(f"{kind:11} {score.values:5} values, recall {score.recall:.3f}   {found}")
            continue
        wanted = bars or (RECALL, PRECISION)  # kinds alone have no bar
        for name, value, asked in (("recall", score.recall, wanted[0]), ("precision", score.precision, wanted[1])):
            bench, bar = f"personal_data, {kind}", 1.0 if bars else None
            say(Comparison(bench, f"{name} asked for", value / asked, bar, None, value, asked, name), True, {**asdict(score), **speed})
    if not chosen.json:
        print(f"{speed['us_per_line']} µs a line")
    if chosen.misses:
        for kind, text in scores.missed:
            print(f"missed {kind}: {text}")
        for kind, value, text in scores.wrong:
            print(f"wrong  {kind}: {value!r} in {text}")


if __name__ == "__main__":
    main()
