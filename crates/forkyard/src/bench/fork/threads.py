import sys, threading
over = threading.Event()
for _ in range(int(sys.argv[1]) - 1):
    threading.Thread(target=over.wait, daemon=True).start()
open("/tmp/ready", "w").close()
over.wait()
