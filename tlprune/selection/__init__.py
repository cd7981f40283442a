"""Selection: which circuit of a given size scores give."""

from tlprune.selection.bisected import Bisected as Bisected
from tlprune.selection.consistent import Consistent as Consistent
from tlprune.selection.greedy import Greedy as Greedy
from tlprune.selection.pattern import NM as NM
from tlprune.selection.program import Connected as Connected
from tlprune.selection.pruned import Pruned as Pruned
from tlprune.selection.ranked import Ratio as Ratio
from tlprune.selection.ranked import Selection as Selection
from tlprune.selection.ranked import Threshold as Threshold
from tlprune.selection.ranked import Top as Top
from tlprune.selection.top_connected import TopConnected as TopConnected
from tlprune.selection.within import PerOutput as PerOutput
from tlprune.selection.within import PerTensor as PerTensor
