"""Captions of the generated scenes in Chinese, from the same facts and wordings as the English ones.

A size stands before the noun (小猫), a colour before the size, and a pose before the colour or, of the subject of a
place, at the end: 一只橘色的小猫在红色的沙发上打盹.
"""

from __future__ import annotations

from collections.abc import Sequence

from ccaco_cli.core.data.scene_words import SceneObject, Wording

NOUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "cat": ("只", ("猫", "猫", "猫", "猫咪")),
    "dog": ("只", ("狗", "狗", "狗", "狗狗")),
    "bird": ("只", ("鸟",)),
    "fish": ("条", ("鱼",)),
    "ball": ("个", ("球",)),
    "box": ("个", ("箱子",)),
    "car": ("辆", ("汽车",)),
    "sofa": ("张", ("沙发",)),
    "tree": ("棵", ("树",)),
    "house": ("栋", ("房子", "房子", "房屋")),
}
"""Noun -> its measure word, and its synonyms, repeated by frequency."""

SYNONYMS: dict[str, tuple[str, ...]] = {
    "red": ("红色", "红色", "红色", "鲜红色"),
    "orange": ("橙色", "橘色", "橘色", "橘黄色"),
    "yellow": ("黄色", "黄色", "黄色", "金黄色"),
    "green": ("绿色", "绿色", "绿色", "翠绿色"),
    "blue": ("蓝色", "蓝色", "蓝色", "天蓝色"),
    "purple": ("紫色", "紫色", "紫色", "深紫色"),
    "small": ("小",),
    "large": ("大",),
    "napping": ("打盹", "打盹", "睡觉", "熟睡"),
    "running": ("奔跑", "奔跑", "跑步"),
    "sitting": ("休息", "休息", "歇息"),
    "flying": ("飞翔", "飞翔", "飞"),
    "swimming": ("游泳", "游动"),
    "garden": ("花园里", "花园里", "草坪上"),
    "beach": ("沙滩上", "沙滩上", "海边"),
    "room": ("房间里", "房间里", "室内"),
    "snow": ("雪地里", "雪地里", "雪地上"),
    "street": ("街道上", "街上", "马路上"),
    "desert": ("沙漠里", "沙漠里", "沙漠中"),
    "forest": ("森林里", "树林里", "树林中"),
    "night": ("夜晚", "夜里", "星空下"),
}

RELATIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "left": (("在{b}的左边", "在{b}的左侧"), ("在{b}的右边", "在{b}的右侧")),
    "above": (("在{b}的上方", "在{b}的上空"), ("在{b}的下方", "在{b}的下面")),
    "on": (("在{b}上", "在{b}上面", "在{b}的顶上"), ("上面有{b}",)),
    "inside": (("在{b}里", "在{b}里面", "在{b}的里面"), ("里有{b}", "里面有{b}")),
    "chasing": (("在追{b}", "正在追{b}", "跟着{b}"), ("被{b}追着", "被{b}跟着")),
    "next": (("在{b}旁边", "在{b}的旁边"), ("在{b}旁边", "在{b}的旁边")),
}
"""Relation -> (what follows A, of B; what follows B, of A)."""

FULL = ("在{place}，{s}{more}", "{s}{more}，这是在{place}", "{place}，{s}{more}", "这是在{place}：{s}{more}")
SHORT = ("{s}{more}", "{s}{more}", "画面中{s}{more}", "可以看到{s}{more}")
ORANGE_CAT = "橘猫"
"""What an orange cat is called; not where both twins must have the same words."""


def full(wording: Wording, objects: Sequence[SceneObject], relation: str, place: str) -> str:
    """As ``scene_words.full``."""
    a, b = (objects[1], objects[0]) if wording.inverse else (objects[0], objects[1])
    phrases = RELATIONS[relation][wording.inverse]
    phrase = phrases[int(wording.phrase * len(phrases))]
    posed = relation != "chasing"
    # "在...上打盹": the pose of the subject ends a phrase of place
    last = posed and phrase.startswith("在{b}") and not wording.pose_first
    sentence = _noun_phrase(wording, a, posed=posed and not last) + phrase.format(
        b=_noun_phrase(wording, b, posed=posed)
    )
    if last and wording.posed and a.pose:
        sentence += _say(wording, a.pose)
    extras = [_noun_phrase(wording, obj, posed=False) for obj in objects[2 : 2 + wording.more]]
    more = f"，附近还有{'和'.join(extras)}" if extras else ""
    return (FULL if wording.placed else SHORT)[wording.template].format(
        s=sentence, more=more, place=_say(wording, place)
    )


def partial(wording: Wording, named: Sequence[SceneObject], place: str) -> str:
    """As ``scene_words.partial``."""
    where = _say(wording, place) if wording.placed else ""
    if len(named) == 1 and wording.posed and named[0].pose and not wording.pose_first:
        (obj,) = named
        return f"{_noun_phrase(wording, obj, posed=False, short=True)}在{where}{_say(wording, obj.pose)}"
    text = "和".join(_noun_phrase(wording, obj, posed=True, short=True) for obj in named)
    if where:
        return f"{where}有{text}"
    return f"一张有{text}的图片" if wording.template == 0 else text


def _noun_phrase(wording: Wording, obj: SceneObject, *, posed: bool, short: bool = False) -> str:
    """A noun phrase: 一只打盹的橘色的小猫; with ``short`` 一只打盹的小橘猫."""
    measure, nouns = NOUNS[obj.noun]
    pose = f"{_say(wording, obj.pose)}的" if posed and wording.posed and obj.pose else ""
    size = _say(wording, obj.size) if wording.sized else ""
    if short and (obj.noun, obj.colour) == ("cat", "orange"):
        return f"一{measure}{pose}{size}{ORANGE_CAT}"
    noun = wording.choose(obj.noun, nouns)
    return f"一{measure}{pose}{_say(wording, obj.colour)}的{size}{noun}"


def _say(wording: Wording, word: str) -> str:
    return wording.choose(word, SYNONYMS[word])
