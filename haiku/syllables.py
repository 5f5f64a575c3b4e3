"""How many syllables a word has: a closed table, so that a count can be checked by reading it.

The table holds every word that the grammar can write and nothing else. A word outside it has no count (`None`), so a
model that makes a word up is caught rather than guessed at. Words whose count differs from speaker to speaker are not
in the word lists; the rest agree with the CMU Pronouncing Dictionary, where it has them.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Final

_WORD: Final = re.compile(r"[A-Za-z']+")

_TABLE: Final = {
    1: """
        a all am and arch are as ask asks at bake bakes ball bare bark barks barn bay be beach beam bean bed bee
        bees bell bench bend bends bird birds bite bites black blink blinks bloom blooms blow blows blue boat book
        books both bowl branch bread break breaks breathe breathes breeze brew brews brick bridge bright brook brown
        buds burn burns buzz by call calls can cape cat chairs child chirp chirps clear clears climb climbs clock
        close cloth cloud clouds coat code cold come cool cools corn count crack cracks creak creaks creek creep
        creeps crisp croak croaks crow crows cup damp dance dark dawn day dear deep deer den desk dew dim do dock
        dog door dough down dream dreams drift drifts drip drips drum drums dry dunes dusk dust else end ends eyes
        fade fades fall falls far fat fawn fence fern field fields fish five flame flames float floats floor flow
        flows fly fog for fox frail fresh friend friends frog frogs from frost full gate gear glass gleam gleams
        glide glides glow glows go gold gone good grass gray graze green grow grows guest gull hall hands hard has
        have head hear heart hearth hedge help here hill hills hive home hoot hoots horse hot hound house how hum
        hums i ice if in is it just keep key kind kiss kite knit knits know lab lake lamb lamp lane lane's lap last
        late laugh laughs lawn leaf leap leaps leaves left let light lights like lines loaf lone long look loom
        looms loon lost loud love make map mare me mile mill mine missed mist monk moon moor more moth mouse much
        mug my name near neat need nest net new night no nod nods not now oak oaks oar of old on once one out owl
        owls own pale palm pan park pass past path peace peaks perch pier pines pink place play plays plump pond
        pool porch proud pure purr purrs quick quilt rage rain rake read red reeds reef rest rests ring rise road
        rock rocks roll rolls roof rose run runs rush said sail sails sake same sand say scarf screen screw sea see
        shed sheep shelf shell shine shines ship shoes shuts shy side sigh sighs sill sing sings sit sky sled sleep
        sleeps slept slow sly small snow so soft song soon soup spade spin spins spoon spring stag stairs stand
        stands star stare stares stars steam steel steep steeps stem steps still stone stop storm stove strange
        stream streets stretch strong such sun surf sway sways sweet swift swim swims swing swings take talk tall
        taught tea tell than that the then there thick thin things this thorn thread three through thyme tick ticks
        tide time to toad too town trail train tree trot trots trout true try turn twig two up us vase wait waits
        wake wakes wall warm was waves way we web week well were west wet wheat white whole why wide wild will wind
        wise with woods word words would write yard yarn year years you young your yours
    """,
    2: """
        about above acorn acorns across after again album along amber anchor ancient antler apron around attic
        autumn away badger balloon basket beacon beckon beckons before behind below beside between beyond bitter
        blanket blizzard blossom blossoms boulders bridges bridle brighten brightens brittle bubble bubbles busy
        butter button buzzes cactus camel canal candle canoe canter canters carpet chapter cheerful childhood
        children chimney circle circles city clearing clever closes cloudburst clover cobweb coffee comet comfort
        comforts corner cottage counter cozy crackle crackles crescent cricket crickets crimson crooked crowded
        cursor curtain cushion daisies dancer dances dangle dangles darken darkens darkness deepen deepens desert
        dinner distant dusty eagle early echo echoes ember empty endless enough faithful feather ferry fiddle finger
        fisher fleeting flicker flickers flower flutter flutters foghorn footprints footsteps forest fragrant
        friendship frozen furrow furrows fuzzy gallop gallops garden gardens gather gathers gentle ghostly giggle
        giggles ginger glacier glassy glimmer glimmers glisten glistens glitter glitters golden goldfish graceful
        grazes gutter haiku hallway halo hammock happens happy harbor harvest heaven heavy hedges hello hermit heron
        hidden highway hollow honest honey hover hovers hungry hurries hurry instead island islands journey keeper
        kettle keyboard kitchen kitten lantern lanterns lazy letter lighthouse lightning lilies lily linen linger
        lingers listen listens little lizard lonely machine maple maples marble market master meadow melon midnight
        mighty milestone mitten mittens moonlight morning mother mountain mountains muddy murmur murmurs mushroom
        music mutter mutters narrow neon nothing ocean older only open opens orchard oven over painted passes
        patient patter patters pebble pebbles perches perfect petal petals photo picnic pigeon pillow platform poet
        pony promise puddle puddles pumpkin puppy purple quiet rabbit rages ragged railway rainbow raindrops rattle
        rattles raven reader remain remains restless return returns ripen ripens ripple ripples rises river robin
        robot robots rooftops rooster roses rumble rumbles rustle rustles rusty saddle sailboat sailor salty saucer
        scarecrow scatter scatters secret sensor settle settles seven shadow shadows shelter shelters shimmer
        shimmers shoreline shutter silence silent silver skater sleepy slipper slumber slumbers snowflakes snowy
        someone sparkle sparkles sparrow spider springtime stable starlight starry station steady steeple stillness
        story stranger stretches subway sudden suitcase summer summit sunlight sunny sunrise sunset sunshine swallow
        swallows sweater sweeten sweetens table tangled taxi teacup teapot temple tender thicket thistle thunder
        ticket tonight topic trellis tremble trembles trowel tulip tumble tumbles tunnel turtle twilight twinkle
        twinkles twitter twitters under upon valley vanish verses village vixen wander wanders watchful water
        western whisper whispers whistle whistles willow winding window winter wooden workbench yellow
    """,
    3: """
        another bakery battery bumblebee butterfly coconut compiler computer dragonfly grandmother horizon icicle
        ladybug lullaby memory nobody pendulum piano seventeen summertime telescope tomatoes umbrella vanishes
        violin
    """,
}

#: Word in lower case -> its syllables.
SYLLABLES: Final = MappingProxyType({word: count for count, words in _TABLE.items() for word in words.split()})


def words_of(text: str) -> list[str]:
    """The words of `text` in lower case, in order, without digits or punctuation."""
    return [word.lower() for word in _WORD.findall(text)]


def count_word(word: str) -> int | None:
    """Syllables of one word, or `None` when the table does not hold it."""
    return SYLLABLES.get(word.lower())


def count(text: str) -> int | None:
    """Syllables of a line, or `None` when it holds no word, or one that the table does not hold."""
    counts = [count_word(word) for word in words_of(text)]
    known = [n for n in counts if n is not None]
    return sum(known) if known and len(known) == len(counts) else None
