//! The CPU: the oracle every other device is checked against.

use super::*;
use crate::delta::Factor;

pub struct Cpu {}
#[derive(Clone)]
pub struct Mat { d: Vec<f32>, c: usize }
pub struct Kv { shape: KvShape, k: Vec<f32>, v: Vec<f32> }
impl Kv { fn at(&self, layer: usize, span: &Span, pos: usize) -> usize {
    let s=&self.shape; let b = span.block_table[pos / s.block_tokens].0 as usize;
    (((layer*s.blocks + b)*s.block_tokens) + pos % s.block_tokens) * s.kv_heads * s.head_dim } }
pub struct Batch { rows: Rows }
impl Cpu { pub fn new(_threads: usize) -> Self { Cpu{} } pub fn features() -> &'static str { "naive" } }
fn dot(a:&[f32],b:&[f32])->f32{a.iter().zip(b).map(|(a,b)|a*b).sum()}
fn apply(ch:&SiteDelta,pool:&Values,x:&[f32],y:&mut [f32]){
  if let (Some(d),Some(u))=(&ch.down,&ch.up){ for r in 0..d.rank { let h=dot(&d.row(pool,r),x); for (y,b) in y.iter_mut().zip(u.row(pool,r)){*y+=h*b;} } }
  post(ch,y);
}
fn post(ch:&SiteDelta,y:&mut [f32]){
  if let Some(s)=&ch.scale{ y.iter_mut().zip(s).for_each(|(y,s)|*y*=s)}
  if let Some(s)=&ch.shift{ y.iter_mut().zip(s).for_each(|(y,s)|*y+=s)}
}
impl Cpu {
 fn lin(&self,x:&Mat,l:&Linear<Self>,slots:&[Slot],pool:&Vec<Option<Arc<Delta>>>)->Mat{
  let w=l.weight.to_f32(); let mut d=Vec::new();
  for (x,s) in x.d.chunks(x.c).zip(slots){
    let ch = if *s==Slot::BASE {None} else {pool[s.0 as usize].as_ref().unwrap().site(l.site)};
    let own; let w2 = match ch.and_then(|c|c.weight.as_ref()) {Some(v)=>{own=v.to_f32();&own},None=>&w};
    let mut y:Vec<f32>=w2.chunks(x.len()).map(|w|dot(w,x)).collect();
    if let Some(b)=&l.bias{y.iter_mut().zip(b).for_each(|(y,b)|*y+=b)}
    if let Some(c)=ch{apply(c,&pool[s.0 as usize].as_ref().unwrap().pool,x,&mut y)}
    d.extend(y);
  } Mat{d,c:l.out_features}}
}
impl Backend for Cpu {
 type Tensor=Mat; type Weight=Values; type Vector=Vec<f32>; type Kv=Kv; type Pool=Vec<Option<Arc<Delta>>>; type Batch=Batch; type Rope=RopeTable;
 fn upload(&self,m:HostMatrix)->Values{m.values}
 fn upload_vector(&self,v:&[f32])->Vec<f32>{v.to_vec()}
 fn upload_rope(&self,r:RopeTable)->RopeTable{r}
 fn kv(&self,s:KvShape)->Kv{let n=s.layers*s.blocks*s.block_tokens*s.kv_heads*s.head_dim;Kv{shape:s,k:vec![0.;n],v:vec![0.;n]}}
 fn pool(&self,n:usize)->Self::Pool{vec![None;n]}
 fn write_slot(&self,p:&mut Self::Pool,s:Slot,d:Arc<Delta>){p[s.0 as usize]=Some(d)}
 fn clear_slot(&self,p:&mut Self::Pool,s:Slot){p[s.0 as usize]=None}
 fn batch(&self,rows:Rows)->Batch{Batch{rows}}
 fn embed(&self,t:&Embedding<Self>,b:&Batch,a:Adapters<'_,Self>)->Mat{
  let mut d=Vec::new();
  for (tok,s) in b.rows.tokens.iter().zip(&b.rows.slots){ let tok=*tok as usize;
    let ch=if *s==Slot::BASE{None}else{a.pool[s.0 as usize].as_ref().unwrap().site(t.site)};
    let w=ch.and_then(|c|c.weight.as_ref()).unwrap_or(&t.weight);
    let mut y:Vec<f32>=(0..t.hidden).map(|i|w.get(tok*t.hidden+i)).collect();
    if let Some(sh)=&t.shift{y.iter_mut().zip(sh).for_each(|(y,s)|*y+=s)}
    if let Some(c)=ch{ let pool=&a.pool[s.0 as usize].as_ref().unwrap().pool;
      if let (Some(dn),Some(u))=(&c.down,&c.up){let f:(&Factor,&Factor)=(dn,u);for r in 0..f.0.rank{let h=f.0.get(pool,r,tok);for(y,b) in y.iter_mut().zip(f.1.row(pool,r)){*y+=h*b}}}
      post(c,&mut y);}
    d.extend(y);} Mat{d,c:t.hidden}}
 fn linears<const N:usize>(&self,x:&Mat,l:[&Linear<Self>;N],b:&Batch,a:Adapters<'_,Self>)->[Mat;N]{l.map(|l|self.lin(x,l,&b.rows.slots,a.pool))}
 fn rms_norm(&self,x:&Mat,n:&Norm<Self>,b:&Batch,a:Adapters<'_,Self>)->Mat{
  let mut o=x.clone();
  for (row,s) in o.d.chunks_mut(x.c).zip(&b.rows.slots){ let ch=if *s==Slot::BASE{None}else{a.pool[s.0 as usize].as_ref().unwrap().site(n.site)};
   for g in row.chunks_mut(n.width){ let ms=dot(g,g)/n.width as f32; let r=1./(ms+n.eps).sqrt();
    let own; let w=match ch.and_then(|c|c.weight.as_ref()){Some(v)=>{own=v.to_f32();&own},None=>&n.weight};
    g.iter_mut().zip(w).for_each(|(g,w)|*g=*g*r*w);
    if let Some(sh)=&n.shift{g.iter_mut().zip(sh).for_each(|(g,s)|*g+=s)}
    if let Some(c)=ch{post(c,g)} } } o}
 fn rope_and_store(&self,q:&mut Mat,k:&mut Mat,v:&Mat,rope:&RopeTable,layer:usize,kv:&mut Kv,b:&Batch){
  let h=rope.half;
  for m in [&mut *q,&mut *k]{ let c=m.c; for (row,p) in m.d.chunks_mut(c).zip(&b.rows.positions){ for hd in row.chunks_mut(2*h){ for i in 0..h{ let (co,si)=(rope.cos[*p as usize*h+i],rope.sin[*p as usize*h+i]); let(x,y)=(hd[i],hd[i+h]); hd[i]=x*co-y*si; hd[i+h]=y*co+x*si; }}}}
  for s in &b.rows.spans{ for j in 0..s.len{ let r=s.start+j; let at=kv.at(layer,s,b.rows.positions[r] as usize); kv.k[at..at+k.c].copy_from_slice(&k.d[r*k.c..][..k.c]); kv.v[at..at+k.c].copy_from_slice(&v.d[r*k.c..][..k.c]); }}}
 fn attention(&self,q:&Mat,sh:&AttentionShape,layer:usize,kv:&Kv,b:&Batch)->Mat{
  let mut o=Mat{d:vec![0.;q.d.len()],c:q.c}; let hd=sh.head_dim; let g=sh.heads/sh.kv_heads;
  for s in &b.rows.spans{ for j in 0..s.len{ let r=s.start+j; let p=b.rows.positions[r] as usize; let lo=sh.window.map_or(0,|w|(p+1).saturating_sub(w as usize));
   for h in 0..sh.heads{ let qh=&q.d[r*q.c+h*hd..][..hd]; let kh=(h/g)*hd;
    let sc:Vec<f32>=(lo..=p).map(|t|dot(qh,&kv.k[kv.at(layer,s,t)+kh..][..hd])*sh.scale).collect();
    let mx=sc.iter().cloned().fold(f32::MIN,f32::max); let e:Vec<f32>=sc.iter().map(|s|(s-mx).exp()).collect(); let z:f32=e.iter().sum();
    let out=&mut o.d[r*q.c+h*hd..][..hd];
    for (t,e) in (lo..=p).zip(e){ let at=kv.at(layer,s,t)+kh; for i in 0..hd{ out[i]+=e/z*kv.v[at+i]; } } }}} o}
 fn silu_mul(&self,g:&Mat,u:&Mat)->Mat{Mat{d:g.d.iter().zip(&u.d).map(|(g,u)|g/(1.+(-g).exp())*u).collect(),c:g.c}}
 fn add(&self,x:&mut Mat,y:&Mat){x.d.iter_mut().zip(&y.d).for_each(|(x,y)|*x+=y)}
 fn last_rows(&self,x:&Mat,b:&Batch)->Mat{Mat{d:b.rows.logit_rows.iter().flat_map(|r|x.d[*r as usize*x.c..][..x.c].to_vec()).collect(),c:x.c}}
 fn head(&self,x:&Mat,l:&Linear<Self>,b:&Batch,a:Adapters<'_,Self>)->Mat{let s:Vec<Slot>=b.rows.logit_rows.iter().map(|r|b.rows.slots[*r as usize]).collect();self.lin(x,l,&s,a.pool)}
 fn sample(&self,l:&Mat,rows:&[SampleRow])->Vec<Sampled>{l.d.chunks(l.c).zip(rows).map(|(l,_)|{let mut b=0;for i in 0..l.len(){if l[i]>l[b]{b=i}} let m=l[b];let z:f32=l.iter().map(|x|(x-m).exp()).sum();Sampled{token:Some(b as u32),logprob:-z.ln(),top:vec![]}}).collect()}
 fn download(&self,x:&Mat)->Vec<f32>{x.d.clone()}
 fn fold_linear(&self,_:&mut Linear<Self>,_:&SiteDelta,_:&Values){}
 fn fold_norm(&self,_:&mut Norm<Self>,_:&SiteDelta){}
 fn fold_embedding(&self,_:&mut Embedding<Self>,_:&SiteDelta,_:&Values){}
}
