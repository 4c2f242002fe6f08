"""Reference values of delta(epsilon) for mixed sequences, by another method than the crate's: the tilted law of each step, sampled
by the trapezoidal rule, is spread on a lattice with cubic Lagrange weights, composed by FFT in 80-bit floats, and extrapolated to spacing
zero. Needs numpy and scipy on a machine whose long double has 80 bits. `delta` returns ln delta, its relative uncertainty (the last
extrapolation), and the largest mass at the window's edge, relative. Made tests/fixtures/mixed.json.
"""
import numpy as np
import scipy.fft as sf
L=np.longdouble
def step_law(q,s,direction,c):
    q=L(q); s=L(s); s2=s*s
    dx=min(s2/400, s/150)
    p=(c+1) if direction=='remove' else -c
    lo=min(p,0)-11*s-1; hi=max(p,1)+11*s+1
    if (hi-lo)/dx>400000: dx=(hi-lo)/400000
    x=np.arange(int(lo/dx),int(hi/dx)+1).astype(L)*dx
    z=(2*x-1)/(2*s2)
    if q==1: y=z
    else:
        y=np.where(z<20, np.log1p(q*np.expm1(np.minimum(z,20))), z+np.log(q+(1-q)*np.exp(-np.maximum(z,-20))))
    lw=p*y-x*x/(2*s2)
    m=lw.max(); w=np.exp(lw-m)
    k=w>1e-25*w.max(); 
    lm=m+np.log(w.sum()*dx)-np.log(s)-L('0.918938533204672741780329736405617639861')
    y=y[k]; w=w[k]; w=w/w.sum()
    return (y if direction=='remove' else -y), w, lm
def coarse(q,s,direction):
    s2=s*s; dx=min(s2/10,s/12); lo=-11*s-40; hi=(3100 if direction=='remove' else 30)+11*s
    if direction=='add': lo=-300-11*s
    if (hi-lo)/dx>60000: dx=(hi-lo)/60000
    x=np.arange(lo,hi,dx); z=(2*x-1)/(2*s2)
    y=z if q==1 else np.where(z<20,np.log1p(q*np.expm1(np.minimum(z,20))),z+np.log(q+(1-q)*np.exp(-np.maximum(z,-20))))
    return y,-x*x/(2*s2)+np.log(dx/s)-0.9189385332046727
def Kc(laws,direction,c):
    p=(c+1) if direction=='remove' else -c; t=0.
    for (y,b),n in laws:
        v=p*y+b; m=v.max(); w=np.exp(v-m); t+=n*(m+np.log(w.sum()))
    return t
def tilt(segs,direction,eps):
    laws=[(coarse(q,s,direction),n) for q,s,n in segs]
    f=lambda c: float(Kc(laws,direction,c)-c*eps-np.log(c*(c+1.0)))
    # golden in ln c
    a,b=np.log(1e-2),np.log(3e3 if direction=='remove' else 3e2)
    xs=np.linspace(a,b,25); v=[f(np.exp(x)) for x in xs]; i=int(np.argmin(v))
    lo,hi=xs[max(i-1,0)],xs[min(i+1,24)]
    for _ in range(12):
        m1=lo+(hi-lo)*0.382; m2=lo+(hi-lo)*0.618
        if f(np.exp(m1))<f(np.exp(m2)): hi=m2
        else: lo=m1
    return float(np.exp((lo+hi)/2))
def delta_h(segs,direction,eps,c,h,laws,lm,N):
    tot=None
    mean=L(0)
    for (q,s,n),(y,w,_) in zip(segs,laws):
        k=np.floor(y/h).astype(np.int64); f=y/h-k
        # cubic lagrange weights at -1,0,1,2
        ws=[-f*(f-1)*(f-2)/6,(f+1)*(f-1)*(f-2)/2,-(f+1)*f*(f-2)/2,(f+1)*f*(f-1)/6]
        line=np.zeros(N,L)
        for j,ww in enumerate(ws): line+=np.bincount((k+(j-1))%N,weights=(ww*w).astype(float),minlength=N)
        line/=line.sum()
        F=sf.rfft(line)
        a=np.abs(F); a[a==0]=L('1e-4000')
        lf=n*(np.log(a)+1j*np.angle(F))
        tot=lf if tot is None else tot+lf
        mean+=n*(y*w).sum()
    W=sf.irfft(np.exp(tot),N)
    mid=int(np.round(float(mean/h)))
    idx=mid-N//2+np.arange(N)
    Wc=W[idx%N]
    yy=idx.astype(L)*h
    pos=yy>eps+h/4
    edge=max(abs(Wc[:N//64]).max(),abs(Wc[-N//64:]).max())/abs(Wc).max()
    d=(-np.expm1(L(eps)-yy[pos])*np.exp(-c*(yy[pos]-eps))*Wc[pos]).sum()
    return d*np.exp(lm-c*L(eps)), edge
def delta(segs,direction,eps,N0=2**15,verbose=False):
    segs=[t for t in segs if t[0]>0]
    c=L(tilt(segs,direction,eps))
    laws=[step_law(q,s,direction,c) for q,s,n in segs]
    lm=sum(n*l[2] for (q,s,n),l in zip(segs,laws))
    var=sum(n*((y*y*w).sum()-(y*w).sum()**2) for (q,s,n),(y,w,_) in zip(segs,laws))
    big=max(float(y[w>1e-22].max()-y[w>1e-22].min()) for (y,w,_) in laws)
    width=float(26*np.sqrt(var))+2.2*big
    h0=width/N0
    if eps>0:
        m=max(1,int(np.ceil(eps/h0))); h0=eps/m
    out=[]
    for j in range(3):
        h=L(eps)/(m*2**j) if eps>0 else L(h0)/2**j
        N=N0*2**j
        while N*h<width: N*=2
        d,e=delta_h(segs,direction,eps,c,h,laws,lm,N)
        out.append(d)
    r1=(4*out[1]-out[0])/3; r2=(4*out[2]-out[1])/3
    r=(16*r2-r1)/15
    unc=abs(r-r2)/abs(r)
    return float(np.log(r)) if r>0 else float('-inf'), float(unc), float(e)
def both(segs,eps):
    a=delta(segs,'remove',eps)
    b=delta(segs,'add',eps) if not bounded_below(segs,eps) else (-np.inf,0,0)
    return a,b
def bounded_below(segs,eps):
    if any(q==1 for q,_,_ in segs): return False
    return eps>=sum(-n*np.log1p(-q) for q,_,n in segs)
if __name__=='__main__':
    print(delta([(0.01,1.0,10000)],'remove',6.18771238,), np.log(1e-5))
