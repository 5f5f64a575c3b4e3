"""The word lists that the haiku grammar draws on.

One line per topic, fields parted by ``|``:

1. what a prompt may call the topic, parted by ``/``; the first is its name;
2. keywords: the nouns that *are* the topic (a haiku on it holds one in its first line);
3. images: nouns that go with it; 4. verbs for the keywords; 5. adjectives for the keywords;
6. places, parted by ``,``.

A noun is countable and singular as written; ``~`` marks a mass noun (``~rain``), ``+`` a plural (``+waves``).
Every word here has its syllables in :mod:`.syllables`; words whose count speakers argue about (*fire*, *hour*,
*rippling*, *squirrel*) are left out on purpose. Few words in each place, each of them often used, is what lets a model of a
few megabytes learn to count.
"""

from __future__ import annotations

TOPICS = """
rain/the rain/rainy days/drizzle | ~rain +raindrops cloudburst | puddle umbrella gutter window +leaves | fall drum patter sing | gray cold gentle steady silver | on the roof, down the glass, in the lane, over the rooftops
snow/the snow/snowflakes | ~snow +snowflakes | mitten chimney +footprints lantern sled | fall settle drift gleam | white deep silent fresh early | on the pines, over the roof, in the field, across the meadow
wind/the wind/a breeze | ~wind breeze | curtain kite +reeds shutter sparrow | blow wander whistle sigh | wild warm bitter restless western | in the reeds, over the hill, through the pines, around the old house
moon/the moon/moonlight | moon ~moonlight crescent | pond lantern +shadows halo cricket | rise gleam wander shimmer | full pale thin yellow autumn | on the pond, between clouds, over the hill, above the valley
sun/the sun/sunshine/sunlight | sun ~sunlight ~sunshine | shadow horizon lizard +clouds window | rise burn climb shimmer | warm bright red golden lazy | on the wall, over the wheat, across the floor, behind the mountains
sea/the sea/the ocean/the beach | sea ocean +waves | gull shell sailboat +pebbles tide | roll break whisper glitter | blue wide salty restless endless | on the sand, at the pier, beyond the reef, along the shoreline
river/a river/a stream/a creek | river stream | willow heron +pebbles ferry trout | flow bend murmur glisten | clear slow muddy winding silver | by the mill, under the bridge, around the bend, through the valley
lake/a lake/a pond | lake pond | canoe dock loon +lilies dragonfly | gleam rest ripple shimmer | still deep blue glassy quiet | by the dock, near the reeds, under the moon, across the water
mountain/mountains/the mountains/a hill | mountain summit +peaks | eagle glacier trail hermit +boulders | stand loom wait slumber | tall steep blue ancient snowy | in the mist, above the clouds, beyond the pass, over the valley
forest/a forest/the woods | forest +woods | fern hollow owl mushroom +shadows | breathe rustle whisper darken | green deep dark ancient tangled | in the mist, by the brook, under the moon, beyond the meadow
tree/trees/an old tree/an oak | tree oak maple | acorn badger branch nest +shadows | stand sway creak shelter | tall bare old crooked mighty | on the hill, by the well, near the old barn, over the meadow
flower/flowers/a flower/tulips | flower +petals tulip | bee garden vase stem ladybug | bloom nod open scatter | bright small red yellow tender | by the gate, on the sill, along the path, under the window
cherry blossom/cherry blossoms/sakura | blossom +blossoms | sparrow temple lantern monk picnic | fall drift open scatter | pink pale soft fleeting early | in the park, on the steps, along the canal, over the temple
rose/roses/a rose | rose +roses | thorn trellis letter bumblebee ~dew | bloom climb fade open | red wild sweet crimson white | by the gate, on the arch, near the brick wall, under the window
leaf/leaves/falling leaves | leaf +leaves | rake puddle maple lane sparrow | fall spin drift tumble | brown dry red golden brittle | on the lawn, in the stream, down the long lane, over the puddles
grass/a meadow/fields/the meadow | ~grass meadow | cricket rabbit clover fence +daisies | sway bend whisper ripple | green tall wet summer silver | by the creek, in the dew, beyond the fence, under the blue sky
autumn/fall/the fall/october | ~autumn harvest | pumpkin orchard scarecrow +acorns barn | fade linger deepen whisper | gold crisp late rusty amber | on the hill, in the lane, over the fields, along the hedges
winter/the winter/cold winter/january | ~winter blizzard | icicle scarf chimney +mittens sparrow | bite linger deepen whisper | long dark white bitter frozen | in the lane, at the door, on the frozen pond, over the village
spring/springtime/the spring/april | ~spring ~springtime | robin lamb orchard +buds +puddles | wake bloom return whisper | green fresh young early tender | by the brook, on the twig, under the hedge, over the meadow
summer/the summer/summertime/july | ~summer ~summertime | hammock melon cricket porch +swallows | hum glow linger shimmer | hot long slow golden lazy | on the porch, by the pool, in the tall grass, over the harbor
morning/dawn/sunrise/the morning | morning sunrise ~dawn | rooster kettle sparrow curtain +rooftops | wake glow open brighten | pink pale new early quiet | on the sill, in the lane, over the hills, across the kitchen
evening/dusk/sunset/the evening | sunset ~dusk ~twilight | swallow porch lantern +rooftops ferry | fade glow settle deepen | red soft late purple golden | on the porch, by the bay, over the hills, behind the steeple
night/the night/midnight/darkness | night midnight ~darkness | owl lantern cricket pillow clock | fall wait deepen listen | black long cool silent starry | in the hall, on the stairs, down the dark lane, over the village
star/stars/the stars/starlight | star +stars ~starlight | comet telescope barn sailor +crickets | shine burn twinkle glitter | bright cold small distant silver | in the west, on the lake, above the barn, over the desert
sky/the sky/a blue sky/heaven | sky ~heaven | kite balloon swallow rainbow steeple | clear glow darken open | wide blue pale empty endless | in the pond, above the town, over the wheat, beyond the steeple
cloud/clouds/a cloud | cloud +clouds | steeple shadow kite +sheep hill | drift pass gather wander | white soft gray lonely heavy | in the west, on the lake, over the hills, above the harbor
storm/a storm/thunder/lightning | storm ~thunder ~lightning | candle shutter gutter harbor sailor | rage crack rumble darken | black loud wild sudden summer | in the west, on the bay, over the hills, beyond the village
fog/mist/the fog | ~fog ~mist | lighthouse ferry foghorn heron +lanterns | creep drift linger gather | thick gray damp ghostly morning | on the bay, in the pines, across the moor, along the river
ice/frost/the frost/ice skating | ~ice ~frost | skater mitten twig window +crickets | gleam crack sparkle glitter | thin white hard brittle silver | on the pond, on the glass, over the grass, along the river
fire/a campfire/flames/a candle | flame +flames ember | kettle blanket moth story +shadows | dance glow flicker crackle | red bright warm hungry golden | in the hearth, on the beach, under the stars, beside the river
cat/cats/my cat/a kitten | cat kitten | cushion window ~yarn teapot mouse | purr stretch wander slumber | black soft sly sleepy lazy | on the sill, in the sun, under the bed, behind the curtain
dog/dogs/my dog/a puppy | dog puppy hound | slipper ball fence badger master | bark run wander listen | old brown good happy muddy | at the gate, on the porch, in the tall grass, under the table
bird/birds/a songbird/a robin | bird +birds robin | feather nest hedge window branch | sing chirp flutter twitter | small blue bright early cheerful | on the fence, in the hedge, above the roof, over the garden
crow/crows/a raven | crow +crows raven | scarecrow fence furrow ~corn steeple | call perch circle mutter | black sly lone clever ragged | on the fence, in the snow, over the corn, above the furrows
owl/owls/an owl | owl +owls | barn mouse moon branch lantern | hoot stare listen hover | white wise gray silent watchful | in the barn, on the branch, under the moon, over the meadow
frog/frogs/a frog/toads | frog +frogs toad | lily pond ripple puddle dragonfly | croak leap listen slumber | green fat wet little ancient | in the pond, by the well, on the wet stone, under the lily
fish/a fish/goldfish/koi | fish goldfish trout | bubble ripple lily net heron | swim glide linger glimmer | quick cold shy silver golden | in the bowl, by the dock, under the ice, below the water
bee/bees/a bee/honey | bee +bees bumblebee | clover hive blossom ~honey garden | hum buzz hover wander | small plump gold busy fuzzy | in the thyme, by the hive, on the clover, over the garden
butterfly/butterflies/a moth | butterfly moth | petal thistle garden lantern finger | float dance flutter hover | frail bright pale yellow painted | in the sun, by the gate, over the thyme, along the garden
horse/horses/a horse/a pony | horse pony mare | saddle stable meadow barn bridle | run graze gallop canter | brown wild proud gentle swift | by the barn, in the dust, across the field, over the meadow
fox/foxes/a fox | fox vixen | hedge den rabbit ~snow moon | creep trot vanish listen | red sly quick clever quiet | in the snow, by the den, across the field, under the hedges
deer/a deer/a fawn | deer fawn stag | clearing thicket antler fern brook | graze leap listen vanish | shy still brown graceful gentle | by the brook, in the fern, under the oaks, across the meadow
spider/spiders/a spider web/a spider | spider cobweb web | ~thread attic ~dew corner fly | spin wait dangle shimmer | small old gray patient silver | in the shed, on the beam, by the porch light, under the attic
garden/gardens/my garden/gardening | garden +gardens | spade robin trowel bean +tomatoes | grow wake ripen slumber | green small neat sunny hidden | by the wall, in the sun, under the glass, behind the cottage
city/the city/a town/tokyo | city +streets town | taxi subway pigeon neon market | hum wake glitter hurry | loud bright gray busy crowded | in the rain, by the bridge, under the moon, above the subway
train/trains/a train/a train station | train station railway | ticket whistle suitcase platform tunnel | roll pass rumble rattle | late long slow distant midnight | in the rain, on the bridge, down the valley, beyond the tunnel
road/a road/travel/a journey | road journey highway | map suitcase stranger desert milestone | bend stretch wander beckon | long white dry dusty empty | in the sun, by the sea, past the last town, over the desert
boat/boats/a ship/sailing | boat ship sailboat | anchor oar harbor gull sailor | sail drift rock wander | small blue old wooden lonely | in the bay, by the dock, with the slow tide, beyond the harbor
bridge/a bridge/bridges | bridge +bridges | river pigeon lantern ferry fisher | stand creak shelter shimmer | old stone red wooden narrow | in the mist, by the mill, over the creek, above the river
lighthouse/a lighthouse/a beacon | lighthouse beacon ~light | keeper gull lamp foghorn sailor | shine stand beckon flicker | tall white old lonely faithful | on the cape, in the fog, above the surf, over the harbor
tea/a cup of tea/green tea | ~tea teacup teapot | kettle saucer ~ginger ~steam guest | steep cool comfort linger | green hot sweet bitter fragrant | in the cup, by the stove, before the rain, after the dinner
coffee/a cup of coffee/espresso | ~coffee | kitchen spoon window ~steam counter | drip brew bubble beckon | black strong hot bitter morning | in the mug, at the desk, before the rush, beside the window
bread/baking/the bakery | ~bread loaf bakery | oven ~dough ~butter table basket | rise bake sweeten beckon | warm fresh brown golden honest | in the pan, on the cloth, by the old stove, under white linen
book/books/reading/a library | book +books chapter | shelf lamp reader pillow poet | wait close open whisper | old thin good dusty heavy | on the shelf, in my lap, by the dim lamp, under the blanket
music/a song/a piano/singing | ~music song piano | fiddle echo hallway dancer violin | rise play linger echo | soft sweet slow distant gentle | in the hall, from the porch, through the thin wall, over the water
love/romance/my love/a kiss | ~love kiss | letter ring promise heart +roses | bloom wait linger whisper | true sweet young tender secret | in your eyes, by the sea, between two hands, under the maple
friend/friends/friendship | friend +friends ~friendship | letter table story bench +footsteps | laugh wait listen linger | old dear true faithful gentle | at the door, by my side, around the hearth, over the garden
sleep/dreams/a dream/dreaming | ~sleep dream +dreams | pillow blanket feather ship lullaby | drift fade linger deepen | deep strange sweet heavy gentle | in the dark, by the hearth, under the quilt, beyond the window
home/my home/a house/the house | home house cottage | chimney porch key candle carpet | wait glow slumber beckon | old warm small quiet cozy | on the hill, by the sea, at the lane's end, under the maples
child/children/a baby/childhood | child +children ~childhood | swing marble kite puddle balloon | laugh play giggle wander | small shy young happy sleepy | on the swings, in the park, by the old fence, under the table
mother/my mother/grandmother/family | ~mother ~grandmother | apron ~soup garden letter sweater | hum knit listen whisper | kind strong old gentle patient | by the stove, in the yard, at the table, beside the window
silence/quiet/peace/stillness | ~silence ~stillness ~peace | temple candle pebble monk bell | fall grow settle deepen | deep pure cool perfect gentle | in the snow, on the lake, after the bell, under the maples
time/clocks/memory/the past | ~time clock memory | candle album attic photo pendulum | pass tick linger whisper | slow old lost patient distant | on the wall, in the book, down the long years, beyond the window
desert/the desert/sand dunes/a cactus | desert +dunes cactus | camel lizard well stranger raven | burn sleep shimmer darken | dry hot wide empty golden | in the sun, at the well, under the stars, beyond the mountain
island/an island/a tropical island | island +islands | palm harbor coconut turtle fisher | wait sleep beckon shimmer | green far small distant sunny | in the sea, in the mist, beyond the reef, over the water
computer/computers/code/programming | computer ~code keyboard | cursor screen compiler ~coffee desk | blink wait whisper slumber | blue new dim patient clever | on the desk, in the dark, in the cold lab, under the table
robot/robots/ai/a machine | robot machine +robots | sensor gear workbench battery screw | hum blink wander listen | small old steel patient rusty | in the lab, on the shelf, under dim lights, beside the workbench
""".strip()

#: Adjectives that go with any image.
IMAGE_ADJECTIVES = "small old pale lone quiet silver hidden distant empty patient".split()
#: Verbs that go with any image, as said of many; :func:`.grammar.third_person` says them of one.
IMAGE_VERBS = "wait rest gleam listen tremble linger return remain".split()
TIMES = "tonight,at dawn,at dusk,all day,once more,before dawn,after dark,once again,this morning".split(",")
#: First words of a last line that holds an image.
LEADS = "and then still now".split()

#: Last lines that suit any topic, five syllables each.
CLOSERS = """
nothing else to do|I hear my own steps|the light is enough|a good place to stop|we talk of old friends
my tea has gone cold|the clock has run down|I button my coat|soon it will be dark|another year gone
your letter at last|how long have I slept|the road bends from here|this is all I have|far away, a dog
I read it again|not a word is said|the last guest has left|we look up and laugh|you would like it here
one more mile to go|I still know the way|now the rest is yours|a child asks me why|as if for my sake
two chairs and no one|my shoes by the door|it happens like that|the whole house is still|I keep it with me
so ends the long week|someone shuts a gate|we were here before|nobody asks why
"""

#: First lines when the topic is not one of ours.
STRANGE_FIRST = """
your word is not mine|that name I have not|this one I missed, friend|I was not taught that|no such word in here
"""
#: Second and third lines after those.
STRANGE_SECOND = """
take the moon above the hill|here is snow upon the pines|so I look out at the rain
hear the river turn instead|let us talk about the wind
"""
STRANGE_THIRD = """
older than us both|I know that one well|quiet, and enough|just the same, it shines|all the rest can wait
"""

#: Answers to what is no request for a haiku.
OTHER_FIRST = """
I am only small|such things pass me by|too much for my head|I count and I stop|there I have no words
"""
OTHER_SECOND = """
haiku are the things I make|seventeen is all I need|I was taught to write three lines
verses of three lines are mine|five and seven, five again
"""
OTHER_THIRD = """
say the word: the moon|try me with the rain|a topic would help|tell me of your cat|ask again with snow
"""
HELLO_FIRST = """
good to see you here|come in and sit down|a kind word at last|hello to you, too|a guest at my gate
"""
