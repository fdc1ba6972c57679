"""Time to the first token of a prompt of about 2000 tokens, and of a second one that shares all but its end. usage: prefix.py URL (from the root of the repository)"""
import json, sys, time, urllib.request
url=sys.argv[1]; text=open('./crates/scrimp-llm/assets/alice.txt').read()
def ask(prompt):
    b=json.dumps({"prompt":prompt,"max_tokens":1,"temperature":0}).encode()
    t=time.perf_counter(); a=json.loads(urllib.request.urlopen(urllib.request.Request(url+"/v1/completions",b,{"Content-Type":"application/json"})).read()); return (time.perf_counter()-t)*1e3, a["usage"]
ask("warm up")
r=[]
for i in range(3):
    p=text[i*9000:i*9000+7600]
    a,u=ask(p+" One two"); b,v=ask(p+" Three four"); r.append((round(a,1),round(b,1),round(b/a,3),u["prompt_tokens"],v["prompt_tokens_details"]["cached_tokens"]))
print(r)
