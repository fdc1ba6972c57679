"""10,000 short requests, 5% of the clients vanish mid-stream, 1% of the requests are malformed: no wrong answer, no 5xx, no leak.
usage: soak.py URL N PID-OF-THE-SERVER"""
import concurrent.futures, json, random, socket, sys, time, urllib.request, re, os
url = sys.argv[1]; n = int(sys.argv[2]) if len(sys.argv) > 2 else 10000; pid = int(sys.argv[3])
host, port = url.removeprefix("http://").split(":")
words = "cat queen rain king sea hill town wood rose fish".split()
prompts = [f"The {a} and the {b} went" for a in words for b in words]
def rss(): return int(re.search(r"VmRSS:\s+(\d+)", open(f"/proc/{pid}/status").read())[1])
def send(body, read=True):
    with socket.create_connection((host, int(port)), timeout=120) as s:
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        if not read: s.recv(100); return None
        data = b""
        while True:
            got = s.recv(65536)
            if not got: break
            data += got
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), body
def body(p, **o): return json.dumps({"prompt": p, "max_tokens": 8, "temperature": 0, "ignore_eos": True, **o}).encode()
want = {p: json.loads(send(body(p))[1])["choices"][0]["text"] for p in prompts}
counts = {}
def one(i):
    r = random.Random(i); p = r.choice(prompts); x = r.random()
    if x < 0.05:
        send(body(p, stream=True, max_tokens=64), read=False); return "vanished"
    if x < 0.06:
        bad = r.choice([b"{", os.urandom(50), body(p, temperature=-1), body(p, nonsense=1)]); s, _ = send(bad); return f"malformed {s}"
    s, b = send(body(p))
    if s != 200: return f"status {s}"
    return "right" if json.loads(b)["choices"][0]["text"] == want[p] else "WRONG"
start = time.time(); base = None
with concurrent.futures.ThreadPoolExecutor(24) as pool:
    for k, result in enumerate(pool.map(one, range(n))):
        counts[result] = counts.get(result, 0) + 1
        if k == n // 5: base = rss()
time.sleep(2)
m = urllib.request.urlopen(url + "/metrics").read().decode()
get = lambda name: float(re.search(rf"^scrimp:{name}\S* (\S+)$", m, re.M)[1])
print(json.dumps(dict(requests=n, seconds=round(time.time() - start, 1), counts=counts, running=get("num_requests_running"), kv_bytes=get("kv_cache_bytes"), rss_kib_at_20_percent=base, rss_kib_at_end=rss())))
