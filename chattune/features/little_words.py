"""Words that say little by themselves, English and Chinese: none names a topic, and no synonym takes their place."""

from __future__ import annotations

LITTLE = frozenset(
    """a an the and or but nor so yet if then else than as at by for from in into of off on onto out over to up with without about
    after before between during through under above below i me my mine myself we us our ours you your yours he him his she her hers it
    its they them their theirs this that these those who whom whose which what when where why how am is are was were be been being do
    does did done doing have has had having will would shall should can could may might must not no nor never none nothing don't
    doesn't didn't won't can't isn't aren't wasn't i'm i've i'll i'd you're it's that's there here just only very too also yes ok okay
    please hi hello oh ah wow hey hm hmm um uh well haha lol yeah yea yep nope right really used get gets got getting go goes going
    went gone make makes made let like one two three first second last much many more most less few some any every each other others
    another such own same all both thing things something anything everything someone anyone everyone somebody lot lots kind sort
    的 了 是 我 你 他 她 它 们 我们 你们 他们 这 那 这个 那个 有 和 与 或 在 不 没 没有 也 就 都 很 吗 呢 吧 啊 呀 嘛 哦 什么 怎么
    谁 哪 几 个 要 会 能 可以 把 被 给 对 到 从 为 因为 所以 但是 如果 还 再 又 去 来 说 请 好""".split()  # noqa: SIM905 - readable
)
