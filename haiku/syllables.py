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
        a all am and arch are art ask asks at bake bakes ball bare bark barks barn bay beach beam bean bed bee bees
        bell bench bend bends bird birds bite bites black blink blinks bloom blooms blow blows blue boat book books
        bowl branch bread break breaks breath breathe breathes breeze brew brews brick bridge bright brook brown
        buds burn burns but buzz by call calls came can cape cat child chirp chirps clear clears climb climbs clock
        close cloth cloud clouds code cold come cool cools corn crack cracks creak creaks creek creep creeps crisp
        croak croaks crow crows cup damp dance dark dawn day dear deep deer den desk dew dim do dock dog door dough
        down dream dreams drift drifts drip drips drum drums dry dunes dusk dust end eyes fade fades fall falls far
        fat fawn fence fern field fields fish five flame flames float floats floor flow flows fly fog for fox frail
        fresh friend friends frog frogs from frost full gate gear give glass gleam gleams glide glides glow glows go
        gold gone good grass gray graze green grow grows guest gull hall hands hard have heart hearth hedge here
        hill hills hive hold home hoot hoots horse hot hound house how hum hums i ice in is it key kind kiss kite
        knit knits know lab lake lamb lamp lane lane's lap last late laugh laughs lawn leaf leap leaps leave leaves
        left let lets light lights like lines loaf lone long loom looms loon lost loud love map mare me mill mist
        monk moon moor more moth mouse mug my name near neat nest net new night no nod nods not now oak oaks oar of
        off old on once one owl owls pale palm pan park pass past path peace peaks perch pier pines pink play plays
        plump pond pool porch pour proud pure purr purrs quick quilt rage rain rake reach red reeds reef rest rests
        ring rise road rock rocks roll rolls roof rose run runs rush sail sails sand saw say scarf screen screw sea
        see shed sheep shelf shell shine shines ship short shy side sigh sighs sill sing sings sky sled sleep sleeps
        slow sly small smile snow so soft song soup spade spin spins spoon spring stag stairs stand stands star
        stare stares stars stay steam steel steep steeps stem steps still stone storm stove strange stream streets
        stretch strong sun surf sway sways sweet swift swim swims swing swings tall tea that the then there thick
        thin thing think this thorn thread three through thyme tick ticks tide time to toad too town trail train
        tree trot trots trout true try tune twig two vase voice wait waits wake wakes walk wall warm watch waves way
        we web well west wet wheat white whole wide wild will wind wise with woods word words world write yard yarn
        years you young your
    """,
    2: """
        about above acorn acorns across after again album along amber anchor ancient answers antler apron around
        attic autumn away badger balloon basket beacon beckon beckons before behind below beside between beyond
        bitter blanket blizzard blossom blossoms boulders bridges bridle brighten brightens brittle bubble bubbles
        busy butter buzzes cactus camel canal candle canoe canter canters carpet chapter cheerful childhood children
        chimney circle circles city clearing clever closes cloudburst clover cobweb coffee comet comfort comforts
        corner cottage counter cozy crackle crackles crescent cricket crickets crimson crooked crowded cursor
        curtain cushion daisies dancer dances dangle dangles darken darkens darkness deepen deepens desert dinner
        distant dusty eagle early echo echoes ember empty endless even faithful falling feather ferry fiddle finger
        fisher fleeting flicker flickers flower flutter flutters foghorn footprints footsteps forest fragrant
        friendship frozen furrow furrows fuzzy gallop gallops garden gardens gather gathers gentle ghostly giggle
        giggles ginger glacier glassy glimmer glimmers glisten glistens glitter glitters golden goldfish graceful
        grazes gutter haiku hallway halo hammock happy harbor harvest heaven heavy hedges hello hermit heron hidden
        highway hollow honest honey hover hovers hungry hurries hurry instead island islands journey keeper kettle
        keyboard kitchen kitten lantern lanterns lazy letter lighthouse lightning lilies lily linen linger lingers
        listen listens little lizard lonely machine maple maples marble market master meadow melon midnight mighty
        milestone mitten mittens model moonlight morning mother mountain mountains muddy murmur murmurs mushroom
        music mutter mutters narrow neon never notebook nothing ocean only open opens orchard oven over painted
        passes patient patter patters pebble pebbles perches perfect petal petals photo picnic pigeon pillow
        platform poet pony promise puddle puddles pumpkin puppy purple quiet rabbit rages ragged railway rainbow
        raindrops rattle rattles raven reader remain remains restless return returns ripen ripens ripple ripples
        rises river robin robot robots rooftops rooster roses rumble rumbles rustle rustles rusty saddle sailboat
        sailor salty saucer scarecrow scatter scatters secret sensor settle settles seven shadow shadows shelter
        shelters shimmer shimmers shoreline shutter silence silent silver skater sleepy slipper slowly slumber
        slumbers snowflakes snowy softly someone sparkle sparkles sparrow spider springtime stable starlight starry
        station steady steeple stillness story stranger stretches subway sudden suitcase summer summit sunlight
        sunny sunrise sunset sunshine swallow swallows sweater sweeten sweetens table tangled taxi teacup teapot
        temple tender thicket thistle thunder ticket tonight topic trellis tremble trembles trowel tulip tumble
        tumbles tunnel turtle twilight twinkle twinkles twitter twitters under valley vanish village vixen wander
        wanders watchful water welcome western whisper whispers whistle whistles willow winding window winter wooden
        workbench yellow
    """,
    3: """
        bakery battery bumblebee butterfly coconut compiler computer dragonfly grandmother horizon icicle ladybug
        lullaby memory nobody pendulum piano summertime telescope tomatoes tomorrow umbrella vanishes violin
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
