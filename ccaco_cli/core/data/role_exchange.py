"""Captions with exchanged roles: "a man pushes a boy" becomes "a boy pushes a man".

A closed list of agents, verbs and modifiers, mined from the captions of Flickr8k, stands in the place of a parser. A
caption gives a choice only where a template reads both agents and what joins them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from ccaco_cli.core.data.bigrams import BigramModel
from ccaco_cli.core.data.checks import clean_caption

ALIKE, UNLIKE = "roles_alike", "roles_unlike"
"""Kinds of choices: between two people or two animals; between a person and an animal, where text alone says much."""
_PEOPLE = """
man/men woman/women boy/boys girl/girls child/children kid/kids baby/babies toddler/toddlers infant/infants
person/people lady/ladies guy/guys gentleman/gentlemen adult/adults teenager/teenagers mother/mothers father/fathers
bride/brides groom/grooms player/players goalie/goalies athlete/athletes wrestler/wrestlers referee/referees
coach/coaches cowboy/cowboys cyclist/cyclists biker/bikers bicyclist/bicyclists rider/riders runner/runners skier/skiers
skateboarder/skateboarders snowboarder/snowboarders surfer/surfers skater/skaters swimmer/swimmers climber/climbers
hiker/hikers photographer/photographers policeman/policemen officer/officers soldier/soldiers clown/clowns
dancer/dancers trainer/trainers owner/owners friend/friends
"""
_ANIMALS = """
animal/animals dog/dogs puppy/puppies cat/cats kitten/kittens horse/horses cow/cows bull/bulls calf/calves bird/birds
duck/ducks goose/geese swan/swans seagull/seagulls eagle/eagles monkey/monkeys goat/goats pig/pigs camel/camels
elephant/elephants rabbit/rabbits squirrel/squirrels greyhound/greyhounds poodle/poodles terrier/terriers beagle/beagles
collie/collies retriever/retrievers shepherd/shepherds dalmatian/dalmatians doberman/dobermans
"""
_DOGS = "puppy greyhound poodle terrier beagle collie retriever shepherd dalmatian doberman"
_GENERAL = {
    "person": _PEOPLE,
    "friend": _PEOPLE,
    "owner": _PEOPLE,
    "player": "man woman boy girl lady guy gentleman adult athlete goalie",
    "child": "boy girl kid baby toddler infant",
    "kid": "boy girl baby toddler infant",
    "baby": "boy girl toddler infant",
    "toddler": "boy girl infant",
    "infant": "boy girl",
    "adult": "man woman lady guy gentleman mother father",
    "teenager": "boy girl",
    "man": "guy gentleman father groom",
    "guy": "gentleman father groom boy",
    "woman": "lady mother bride",
    "lady": "mother bride girl",
    "animal": _ANIMALS,
    "dog": _DOGS,
    "puppy": _DOGS,
    "cat": "kitten",
    "cow": "bull calf",
    "bird": "duck goose swan seagull eagle",
}
"""Agent -> agents that can be meant by it: of "a man pushes a person" the exchange can be as true."""
_MODIFIERS = """
young little small large big old older elderly younger smaller larger bigger tall skinny chubby teenage adult female
male asian african american indian black brown white tan yellow grey gray golden beige red blue green pink purple orange
dark light lighter darker colored dark-haired blonde blond blond-haired blonde-haired red-haired long-haired haired bald
bearded shirtless smiling laughing sleeping barefoot muscular wet muddy dirty furry fluffy shaggy spotted brindle hairy
curly lone tiny cute baby football soccer basketball baseball hockey rugby german shepherd retriever greyhound
"""
_CLOTHES = """
shirt t-shirt jacket coat sweater sweatshirt hoodie vest top dress skirt shorts jeans pants overalls suit swimsuit
wetsuit bikini uniform jersey outfit costume robe apron hat cap helmet scarf headband bandanna mask glasses sunglasses
goggles collar harness muzzle hair beard ponytail pigtails mohawk trunks boots gloves red blue black white green yellow
pink purple orange brown grey gray tan camouflage
"""
_ACTS = """
approach assist attack bit bitten block bother brush carri carry catch chas comfort corner drag dragg encourag escort
examin feed fed follow grab grabb groom guard held help hit hitt hold instruct interview kick lead led lick lift massag
nip nudg paw pet pett photograph pick pin pinn point pull punch push rid scold slap sniff spray splash support tackl
teach throw thrown tickl toss train tug tugg walk watch
"""
"""Verbs with an object, without their endings. What both sides do alike (hug, kiss, play, fight) is left out."""
_MOTIONS = """
bark climb crouch danc drift gallop glid growl hop jump kneel knelt laid lay lean leap li ly nap pos race rid run runn
sit sitt skat ski sleep snap snapp snarl squat squatt stand step stepp swim swimm swing trot walk wav
"""
"""Verbs that join two agents by a place."""
_PLACES = """
in front of,on top of,onto the back of,on the back of,on the shoulders of,in the lap of,behind,after,atop,onto,on,over,
under,past,at,towards,toward,underneath,above
"""
_DOINGS = """
balanc blow clap crawl cri cry cut danc dig digg do doe drink driv dry eat fall fish fli fly ha hang hid juggl laugh
look mak paint perform play prepar read record relax rest row scream shak shoot show sing slid smil speak spin
spinn star stretch surf tak talk tr tri try us wait wash wear work writ yawn yell
"""
"""Further verbs that begin a clause."""
_FOLLOWING = """
in on at by near with through across while as and down up along around into from onto over under underneath behind
beside between against inside outside during before after outdoors indoors together who that which to out off for
"""
_FEMININE = frozenset(["woman", "girl", "lady", "mother", "bride"])
_MASCULINE = frozenset(["man", "boy", "guy", "gentleman", "father", "groom", "policeman", "cowboy"])
_PRONOUNS = {
    frozenset(["he", "him", "his", "himself"]): _FEMININE,
    frozenset(["she", "her", "hers", "herself"]): _MASCULINE,
    frozenset(["it", "its", "itself"]): _FEMININE | _MASCULINE,
}
"""Pronouns -> agents that they cannot mean."""
_PLURAL_PRONOUNS = frozenset(["they", "them", "their", "themselves", "other", "others", "another", "one"])
_OTHER_NUMBER = {"is": "are", "are": "is", "was": "were", "were": "was"}


@dataclass(frozen=True)
class _Agent:
    """A noun phrase: where it stands in the caption, its noun in the singular, and its other words."""

    span: tuple[int, int]
    noun: str
    plural: bool
    animal: bool
    properties: frozenset[str]


def exchanged_roles(caption: str) -> tuple[str, str] | None:
    """Exchanges the two agents of a caption; None where no template reads it or the exchange can be as true.

    Two templates: subject and object ("a man pushes a boy", "a boy is held by a man", "a dog jumps over a cat"), and
    the agents of two clauses ("a man sits while a boy stands"). Not exchanged are agents that one word can name (man
    and person, dog and puppy), equal nouns without different properties, agents of different number where the verb
    would have to change, and a caption with a pronoun that would then refer to an agent of another kind.

    Args:
        caption: English, as written in the data set.
    Returns:
        (``ALIKE`` or ``UNLIKE``, the caption with exchanged roles).
    """
    text = caption.lower()
    for template in _templates():
        match = template.search(text)
        if match is not None:
            first, second = _agent(match, "1"), _agent(match, "2")
            if _is_distinct(first, second) and _keeps_pronouns(text, match, first, second):
                exchanged = _exchange(caption, match, first, second)
                if exchanged is not None:
                    return (ALIKE if first.animal == second.animal else UNLIKE), exchanged
    return None


def _exchange(caption: str, match: re.Match[str], first: _Agent, second: _Agent) -> str | None:
    """The caption with exchanged agents; None where it would be ungrammatical or say the same."""
    clauses = [name for name in ("clause1", "clause2") if name in match.re.groupindex]
    if any(_NOUN.search(match[name]) for name in clauses):
        return None  # a third agent, who can be meant by the same words
    verbs = [match[name].split()[0] for name in clauses]
    if len(verbs) > len({*verbs}) and verbs[0] not in _OTHER_NUMBER:
        return None  # both do the same
    phrases = [caption[slice(*agent.span)] for agent in (first, second)]
    if first.span[0] == 0 and phrases[0][0].isupper():
        phrases = [phrases[0][0].lower() + phrases[0][1:], phrases[1][0].upper() + phrases[1][1:]]
    replacements = [(first.span, phrases[1]), (second.span, phrases[0])]
    if first.plural != second.plural:
        for name in clauses or ["relation"]:
            verb = _agreeing(match[name])
            if verb is None:
                return None
            replacements.append((match.span(name), verb))
    for (start, end), phrase in sorted(replacements, reverse=True):
        caption = caption[:start] + phrase + caption[end:]
    return caption


def role_choices(captions: Iterable[str], bigrams: BigramModel) -> list[list[Any]]:
    """The choices of one photo, for ``meta["choices"]``.

    Args:
        bigrams: of training captions; they say which caption is likelier without the photo.
    Returns:
        [kind, caption, exchanged caption, log-likelihood of the caption less that of the exchanged one, in nats] of
        each caption with exchangeable agents, without those whose exchange is a caption of the photo, too.
    """
    cleaned = {caption.lower(): caption for caption in map(clean_caption, captions)}
    choices: list[list[Any]] = []
    for caption in cleaned.values():
        exchange = exchanged_roles(caption)
        if exchange is not None and exchange[1].lower() not in cleaned:
            kind, exchanged = exchange
            advantage = bigrams.log_likelihood(caption) - bigrams.log_likelihood(exchanged)
            choices.append([kind, caption, exchanged, round(advantage, 6)])
    return choices


def _agent(match: re.Match[str], number: str) -> _Agent:
    noun, plural, animal = _agents()[match[f"noun{number}"]]
    described = f"{match[f'modifiers{number}']} {match[f'clothes{number}'] or ''}".replace(",", " ").split()
    ignored = {"a", "an", "the", "in", "with", "wearing", "and"}
    return _Agent(match.span(f"agent{number}"), noun, plural, animal, frozenset(described) - ignored)


def _is_distinct(first: _Agent, second: _Agent) -> bool:
    """Whether neither can be called by the name of the other."""
    if first.noun == second.noun:
        return bool(first.properties - second.properties and second.properties - first.properties)
    pairs = ((first.noun, second.noun), (second.noun, first.noun))
    return not any(special in _words(_GENERAL.get(general, "")) for general, special in pairs)


def _keeps_pronouns(text: str, match: re.Match[str], first: _Agent, second: _Agent) -> bool:
    """Whether each pronoun outside the agents can mean either of them."""
    (start1, end1), (start2, end2) = first.span, second.span
    nouns = {first.noun, second.noun}
    for word in f"{text[:start1]} {text[end1:start2]} {text[end2:]}".split():
        if word in _PLURAL_PRONOUNS and not (first.plural and second.plural):
            return False
        if any(word in pronouns and nouns & excluded for pronouns, excluded in _PRONOUNS.items()):
            return False
    return True


def _agreeing(verb: str) -> str | None:
    """What joins the agents, for a subject of the other number; None where more than a form of "be" would change."""
    start = verb.split()[0]
    if start in _OTHER_NUMBER:
        return verb.replace(start, _OTHER_NUMBER[start], 1)
    return verb if re.match(r"(?:\w+ly )?\w+ing\b|with|behind|in ", verb) else None


@cache
def _agents() -> dict[str, tuple[str, bool, bool]]:
    """Word -> (its singular, whether it is a plural, whether it is an animal)."""
    forms = {}
    for words, animal in ((_PEOPLE, False), (_ANIMALS, True)):
        for singular, _, plural in (entry.partition("/") for entry in words.split()):
            forms[singular], forms[plural] = (singular, False, animal), (singular, True, animal)
    return forms


def _words(table: str) -> list[str]:
    return table.replace("/", " ").split()


def _any_of(words: str, separator: str | None = None) -> str:
    return "(?:" + "|".join(re.escape(word.strip()) for word in words.split(separator)) + ")"


_NOUN = re.compile(rf"\b(?:{'|'.join(_agents())})\b")


@cache
def _templates() -> tuple[re.Pattern[str], ...]:
    """Two agents and what joins them.

    Groups: ``agent1`` and ``agent2`` with their parts, and ``relation``, or ``clause1`` and ``clause2``.
    """
    modifier = _any_of(_MODIFIERS)
    modifiers = f"(?:{modifier},? (?:and (?={modifier} ))?)*"
    garment = rf"{modifiers}{_any_of(_CLOTHES)}\b"
    article = "(?:an?|the|two|three|four|some|several) "

    def agent(number: int) -> str:
        # atomic, so that an agent is never read without its last words
        return (
            rf"(?P<agent{number}>(?>(?:{article})?(?P<modifiers{number}>{modifiers})"
            rf"(?P<noun{number}>{'|'.join(_agents())})\b"
            rf"(?P<clothes{number}> (?:in|wearing|with) (?:an? |the )?{garment}(?: and {garment})?)?))"
        )

    be = "(?:(?:is|are|was|were) )?(?:being )?(?:[a-z]+ly )?"
    ending = "(?:e?s|e|y|i?es|y?ing|i?ed|en)?"
    act = rf"{be}{_any_of(_ACTS)}{ending}(?: (?:up|down|off|at|after|on))?(?: by)?"
    motion = rf"{be}{_any_of(_MOTIONS)}{ending} (?:up |down |out )?{_any_of(_PLACES, ',')}"
    relation = f"(?P<relation>{act}|{motion}|{_any_of(_PLACES, ',')})"
    following = rf"(?=\s*(?:$|[.,;!])|\s+{_any_of(_FOLLOWING)}\b)"
    clause = rf"(?:(?:is|are|was|were)\b|(?:[a-z]+ly )?{_any_of(' '.join((_ACTS, _MOTIONS, _DOINGS)))}{ending}\b)"
    before = rf"(?:^|(?:, |\b(?:as|while|where|and|of) )(?={article}))"
    joined = (
        rf"^{agent(1)} (?P<clause1>{clause}[^.;]*?) ?,? (?:while|as|and(?= {article})|with) {agent(2)} "
        rf"(?P<clause2>(?:{clause}|in the background|behind)[^.;]*)"
    )
    return re.compile(f"{before}{agent(1)} {relation} {agent(2)}{following}"), re.compile(joined)
