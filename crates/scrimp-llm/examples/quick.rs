#![allow(missing_docs, clippy::print_stdout)]
use scrimp_llm::{
    checkpoint::Checkpoint,
    model::{Model, RunOptions},
};
use std::time::Instant;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let t = Instant::now();
    let ck = Checkpoint::open(args[1].as_ref()).unwrap();
    println!("open {:?}", t.elapsed());
    let model = Model::load(
        ck,
        &RunOptions { kv_format: args.get(3).cloned().unwrap_or("bf16".into()), ..RunOptions::default() },
    )
    .unwrap();
    println!("load {:?} {} MB", t.elapsed(), model.weight_bytes() >> 20);
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&args[2]).unwrap()).unwrap();
    for p in json["prompts"].as_array().unwrap() {
        let ids: Vec<u32> = p["ids"].as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect();
        let mut s = model.session();
        let logits = s.forward(&ids).unwrap();
        let mut top: Vec<usize> = (0..logits.len()).collect();
        top.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        println!(
            "{:?} {:?} want {} {}",
            &top[..3],
            top[..3].iter().map(|&i| logits[i]).collect::<Vec<_>>(),
            p["top10_ids"],
            p["top10_logits"]
        );
        let mut next = top[0] as u32;
        let mut out = vec![];
        for _ in 0..20 {
            out.push(next);
            let l = s.forward(&[next]).unwrap();
            next = (0..l.len()).max_by(|a, b| l[*a].total_cmp(&l[*b])).unwrap() as u32;
        }
        println!("{out:?}\n{}", p["greedy_ids_transformers"]);
    }
    let ids: Vec<u32> = (0..5000u32).map(|i| 300 + (i * 7919) % 20000).collect();
    for n in [512, 3145] {
        let mut best = 1e9f64;
        for _ in 0..3 {
            let mut s = model.session();
            s.forward(&ids[..8]).unwrap();
            s.reset();
            let t = Instant::now();
            s.forward(&ids[..n]).unwrap();
            best = best.min(t.elapsed().as_secs_f64());
        }
        println!("prefill {n}: {:.1} tok/s", n as f64 / best);
    }
    for depth in [8, 4096] {
        let mut s = model.session();
        s.forward(&ids[..depth]).unwrap();
        let mut best = 1e9f64;
        for _ in 0..3 {
            let t = Instant::now();
            for i in 0..64 {
                s.forward(&ids[100 + i..101 + i]).unwrap();
            }
            best = best.min(t.elapsed().as_secs_f64());
        }
        println!("decode {depth}: {:.1} tok/s kv {}", 64.0 / best, s.kv_bytes());
    }
}
