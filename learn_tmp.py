import random,sys,time,math,collections,argparse
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, decoders, trainers
from transformers import LlamaConfig, LlamaForCausalLM
from evals.micro import *
ap=argparse.ArgumentParser()
ap.add_argument("--rows",type=int,default=6400); ap.add_argument("--tokens",type=float,default=1.5e6); ap.add_argument("--lr",type=float,default=2e-3)
ap.add_argument("--hidden",type=int,default=256); ap.add_argument("--layers",type=int,default=3); ap.add_argument("--vocab",type=int,default=768)
ap.add_argument("--bt",type=int,default=2048); ap.add_argument("--full",action="store_true"); ap.add_argument("--dev",default="cpu"); ap.add_argument("--n",type=int,default=80); ap.add_argument("--inter",type=int,default=512); ap.add_argument("--heads",type=int,default=8); ap.add_argument("--seed",type=int,default=0)
ap.add_argument("--pe",action="store_true");ap.add_argument("--theta",type=float,default=1e4);ap.add_argument("--init",type=float,default=.02);ap.add_argument("--wd",type=float,default=.05)
a=ap.parse_args(); torch.manual_seed(a.seed); rng=random.Random(a.seed)
rows=[]; seen=set()
per=a.rows//8
for d in DOMAINS:
    for f,k in (("easy",int(per*.4)),("hard",per-int(per*.4))):
        c=0
        while c<k:
            q=write_question(d,f,rng)
            if split_of(q)=="train" and q not in seen: seen.add(q); rows.append((d,f,q,solve(q).answer)); c+=1
tok=Tokenizer(models.BPE()); tok.pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False); tok.decoder=decoders.ByteLevel()
tr=trainers.BpeTrainer(vocab_size=a.vocab,special_tokens=["<pad>","<|user|>","<|assistant|>","<|end|>"],initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),show_progress=False)
tok.train_from_iterator([x for r in rows for x in (r[2],r[3])],tr)
print("vocab",tok.get_vocab_size())
P,U,A,E=0,1,2,3
def enc(q): return [U]+tok.encode(q).ids+[A]
data=[(enc(q),tok.encode(an).ids+[E]) for _,_,q,an in rows]
st=collections.defaultdict(list)
for r,(x,y) in zip(rows,data): st[r[0],r[1]].append((len(x),len(y)))
for k,v in st.items():
    s=sorted(sum(t) for t in v); print(k,"q %.1f a %.1f max %d/%d"%(sum(t[0] for t in v)/len(v),sum(t[1] for t in v)/len(v),max(t[0] for t in v),max(t[1] for t in v)))
mean=sum(len(x)+len(y) for x,y in data)/len(data); print("mean tokens", mean, "answer share", sum(len(y) for x,y in data)/len(data)/mean)
cfg=LlamaConfig(vocab_size=tok.get_vocab_size(),hidden_size=a.hidden,intermediate_size=a.inter,num_hidden_layers=a.layers,num_attention_heads=a.heads,num_key_value_heads=a.heads,max_position_embeddings=128,tie_word_embeddings=True,pad_token_id=P,bos_token_id=None,eos_token_id=E,initializer_range=a.init,rope_parameters={"rope_type":"default","rope_theta":a.theta})
m=LlamaForCausalLM(cfg).to(a.dev); print("params",sum(p.numel() for p in m.parameters()))
gate=[(d,it) for d in DOMAINS for it in gate_items(d,a.n)]
def evaluate():
    m.eval(); res=collections.Counter(); errs=[]
    pr=[(d,it,enc(it.prompt)) for d,it in gate]
    by=collections.defaultdict(list)
    for t in pr: by[len(t[2])].append(t)
    with torch.no_grad():
        for L,g in by.items():
            ids=torch.tensor([t[2] for t in g],device=a.dev)
            done=torch.zeros(len(g),dtype=bool,device=a.dev); outs=[]
            past=None; inp=ids
            for _ in range(48):
                o=m(input_ids=inp,past_key_values=past,use_cache=True); past=o.past_key_values
                nx=o.logits[:,-1].argmax(-1); nx=torch.where(done,torch.zeros_like(nx),nx); done|=nx==E; outs.append(nx); inp=nx[:,None]
                if done.all(): break
            outs=torch.stack(outs,1).tolist()
            for (d,it,_),o in zip(g,outs):
                o=o[:o.index(E)] if E in o else o
                text=tok.decode([t for t in o if t>3])
                # text equality is enough for learnability, cheaper than sandbox for coding
                ok = text==it.target["answer"] if d=="coding" else verify(it.prompt,text)
                res[d]+=ok; res[d,it.target["difficulty"]]+=ok
                if not ok: errs.append((d,it.prompt,text,it.target["answer"]))
    m.train()
    print("  acc %.3f"%(sum(res[d] for d in DOMAINS)/len(gate)), {d:(round(res[d,"easy"]/a.n*2,2),round(res[d,"hard"]/a.n*2,2)) for d in DOMAINS},flush=True)
    return errs
opt=torch.optim.AdamW(m.parameters(),lr=a.lr,betas=(.9,.98),weight_decay=a.wd)
steps=int(a.tokens/a.bt); warm=max(20,steps//20); step=0; seen_t=0; t0=time.time()
marks={int(steps*x) for x in (.2,.4,.6,.8)}
while step<steps:
    order=list(range(len(data))); rng.shuffle(order)
    # bucket: sort chunks
    batches=[]
    for i in range(0,len(order),1024):
        ch=sorted(order[i:i+1024],key=lambda j:len(data[j][0])+len(data[j][1])); cur=[]; mx=0
        for j in ch:
            L=len(data[j][0])+len(data[j][1])
            if cur and (len(cur)+1)*max(mx,L)>a.bt: batches.append(cur); cur=[]; mx=0
            cur.append(j); mx=max(mx,L)
        batches.append(cur)
    rng.shuffle(batches)
    for b in batches:
        if step>=steps: break
        L=max(len(data[j][0])+len(data[j][1]) for j in b)
        ids=torch.zeros(len(b),L,dtype=torch.long); lab=torch.full((len(b),L),-100)
        for i,j in enumerate(b):
            x,y=data[j]; s=x+y; ids[i,:len(s)]=torch.tensor(s); lab[i,(0 if a.full else len(x)):len(s)]=torch.tensor(s[0 if a.full else len(x):]); seen_t+=len(s)
        lr=a.lr*min(1,(step+1)/warm)*(0.5*(1+math.cos(math.pi*step/steps))*.95+.05)
        for g in opt.param_groups: g["lr"]=lr
        lg=m(input_ids=ids.to(a.dev)).logits[:,:-1]; tg=lab[:,1:].to(a.dev)
        ls=torch.nn.functional.cross_entropy(lg.reshape(-1,lg.size(-1)),tg.reshape(-1),ignore_index=-100,reduction="none").view(tg.shape); mk=(tg!=-100)
        loss=(ls.sum(1)/mk.sum(1)).mean() if a.pe else ls.sum()/mk.sum()
        opt.zero_grad(set_to_none=True); loss.backward(); torch.nn.utils.clip_grad_norm_(m.parameters(),1.0); opt.step(); step+=1
        if step%100==0: print(step,steps,"loss %.3f tok/s %.0f tokens %d"%(loss.item(),seen_t/(time.time()-t0),seen_t),flush=True)
        if step in marks: evaluate()
errs=evaluate()
c=collections.Counter()
for d,q,t,an in errs:
    c[d]+=1
    if c[d]<=8: print("   ",d,"|",q,"|",t,"|",an)
print("seconds",time.time()-t0)
