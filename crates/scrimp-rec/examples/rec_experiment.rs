//! tmp: encoders at equal bytes on generated data. rec_experiment ROWS CAP DIM COMPRESSION LR EPOCHS ENCODER...
use scrimp_kernels::{Tier, threads::Pool};
use scrimp_rec::{data::*, encoders::*, generate::*, model::*, train::*};
fn main() {
    let a: Vec<String> = std::env::args().skip(1).collect();
    let n = |i: usize| a[i].parse::<f64>().unwrap();
    let (rows, cap, dim, compression, lr, epochs) =
        (n(0) as u64, n(1) as u64, n(2) as usize, n(3), n(4) as f32, n(5) as u64);
    let pool = Pool::new(2).unwrap();
    let run = Run { pool: &pool, tier: Tier::detect() };
    let o = GeneratorOptions {
        rows,
        cardinalities: CRITEO_TB.iter().map(|&c| c.min(cap)).collect(),
        ..GeneratorOptions::default()
    };
    let mut data = Memory::read(&mut Generator::new(o.clone(), 2).unwrap()).unwrap();
    let mut valid = Memory::read(
        &mut Generator::new(GeneratorOptions { first_row: rows + 1000, rows: rows / 4, ..o }, 2).unwrap(),
    )
    .unwrap();
    let (census, _) = census(&mut data, true, &mut |_, _| ()).unwrap();
    let full = census.full_bytes(dim);
    println!("distinct {} full {} bytes", census.total(), full);
    for spec in &a[6..] {
        // name[,width[,k[,signs[,share[,lr]]]]]
        let p: Vec<&str> = spec.split(',').collect();
        let get = |i: usize| p.get(i).filter(|s| !s.is_empty()).map(|s| s.parse::<f64>().unwrap());
        let budget = if p[0] == "full" { full } else { (full as f64 / compression) as u64 };
        let mut eo = EncoderOptions::new(p[0], dim, budget);
        eo.width = get(1).map(|x| x as usize);
        eo.k = get(2).map(|x| x as usize);
        eo.signs = get(3).map(|x| x > 0.0);
        eo.weight_share = get(4);
        eo.hot_share = get(6);
        let config = match plan(&eo, &census) {
            Ok(c) => c,
            Err(e) => {
                println!("{spec}: {e}");
                continue;
            }
        };
        let keys = keys_for(&config, &census);
        let mut model =
            Model::new(Preset::named("dlrm").unwrap().config(data.schema().clone(), config, 3, full), &keys)
                .unwrap();
        let options = TrainOptions { epochs, lr: get(5).map_or(lr, |x| x as f32), ..TrainOptions::default() };
        let r = train(&mut model, run, &mut data, Some(&mut valid), &options, &mut |_| ()).unwrap();
        let curve: Vec<String> = r.curve.iter().map(|p| format!("{:.4}", p.valid.unwrap().auc)).collect();
        println!(
            "{spec:30} {:>10} auc {:.4} ll {:.4} {:8.0} rows/s  {}",
            model.embedding_bytes(),
            r.valid.unwrap().auc,
            r.valid.unwrap().logloss,
            r.rows_per_second,
            curve.join(" ")
        );
    }
}
