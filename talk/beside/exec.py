# Loads exec.bcc.c and shows its map. For the talk; needs python3-bpfcc and the kernel's headers.

# talk: begin main
from time import sleep
from bcc import BPF

program = BPF(src_file="exec.bcc.c")  # compiled here and now, by the clang in libbcc
sleep(10)
for user, count in program["commands"].items():
    print(user.value, count.value)
# talk: end
