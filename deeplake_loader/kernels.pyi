# For type checkers in a checkout, where the folder kernels/ lies beside this package; never installed.
from kernels import at_least as at_least
from kernels import backend as backend
from kernels import crc32c as crc32c
from kernels import crc32c_blocks as crc32c_blocks
from kernels import kth_best as kth_best
from kernels import normalize as normalize
from kernels import normalize_yuv as normalize_yuv
from kernels import parse_integers as parse_integers
from kernels import reaching as reaching
from kernels import read_batch as read_batch
from kernels import resize_into as resize_into
from kernels import score_error as score_error
from kernels import scores as scores
from kernels import set_bits as set_bits
from kernels import split as split
from kernels import topk as topk
from kernels import topk_error as topk_error
