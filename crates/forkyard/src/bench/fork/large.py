import os, time
held = bytearray(os.urandom(1 << 20)) * 100
os.mkfifo("/tmp/in")
os.mkfifo("/tmp/out")
open("/tmp/ready", "w").close()
while True:
    with open("/tmp/in") as asked:
        count = int(asked.read())
    begun = time.perf_counter()
    for turn in range(count):
        held[::4096] = bytes([turn]) * (len(held) // 4096)
    taken = (time.perf_counter() - begun) / count
    with open("/tmp/out", "w") as answer:
        print(taken * 1000, file=answer)
