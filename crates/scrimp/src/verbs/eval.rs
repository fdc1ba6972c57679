//! `scrimp eval`: accuracy of models.

mod kv;
mod tasks;

use crate::{
    App,
    cli::eval::{EvalKlArgs, EvalPplArgs, EvalVerb, TextArgs},
    kv_args::KvArgs,
    loaded::Loaded,
    progress::CountBar,
};
use scrimp_eval::{Progress, Windows, kl, ppl, read_text};
use serde::Serialize;

#[derive(Serialize)]
struct Ppl {
    ppl: f64,
    nll: f64,
    tokens: usize,
}

#[derive(Serialize)]
struct Kl {
    kl: f64,
    top1_agreement: f64,
    ppl: f64,
    ppl_reference: f64,
    tokens: usize,
}

/// Runs the metric.
pub(crate) fn run(app: &App, verb: &EvalVerb) -> anyhow::Result<()> {
    match verb {
        EvalVerb::Ppl(args) => perplexity(app, args),
        EvalVerb::Kl(args) => divergence(app, args),
        EvalVerb::Kv(args) => kv::run(app, args),
        EvalVerb::Needle(args) => tasks::needle(app, args),
        EvalVerb::Longbench(args) => tasks::longbench(app, args),
        EvalVerb::Ruler(args) => tasks::ruler(app, args),
    }
}

fn perplexity(app: &App, args: &EvalPplArgs) -> anyhow::Result<()> {
    let text = read_text(&args.text.text)?;
    args.kv.only_format("eval ppl")?;
    let loaded = Loaded::open(app, &args.model, &args.kv)?;
    let windows = windows(&args.text, &loaded, encode(&loaded, &text)?)?;
    let bar = CountBar::new("tokens");
    let r = ppl::perplexity(&mut loaded.model.session(), &windows, &mut |p| show(&bar, &p))?;
    drop(bar);
    app.printer.result(&Ppl { ppl: r.ppl, nll: r.nll, tokens: r.tokens }, |r| {
        format!("perplexity {:.4}  ({:.5} nats per token, {} tokens scored)", r.ppl, r.nll, r.tokens)
    })
}

fn divergence(app: &App, args: &EvalKlArgs) -> anyhow::Result<()> {
    let text = read_text(&args.text.text)?;
    args.kv.only_format("eval kl")?;
    let model = Loaded::open(app, &args.model, &args.kv)?;
    let reference = Loaded::open(app, &args.against, &KvArgs::full())?;
    let ids = encode(&model, &text)?;
    kl::check_same_tokens(
        (&ids, model.model.vocab_size()),
        (&encode(&reference, &text)?, reference.model.vocab_size()),
    )?;
    let windows = windows(&args.text, &model, ids)?;
    let bar = CountBar::new("tokens");
    let (mut a, mut b) = (model.model.session(), reference.model.session());
    let r = kl::divergence(&mut a, &mut b, &windows, model.model.vocab_size(), &mut |p| show(&bar, &p))?;
    drop(bar);
    let result = Kl {
        kl: r.kl,
        top1_agreement: r.top1_agreement,
        ppl: r.ppl,
        ppl_reference: r.ppl_reference,
        tokens: r.tokens,
    };
    app.printer.result(&result, |r| {
        format!(
            "KL divergence {:.6} nats per token, same most likely token {:.2}%\nperplexity {:.4}, reference {:.4}  ({} tokens scored)",
            r.kl,
            100.0 * r.top1_agreement,
            r.ppl,
            r.ppl_reference,
            r.tokens
        )
    })
}

/// The text's tokens. Special tokens in the text are encoded as ordinary text.
fn encode(loaded: &Loaded, text: &str) -> anyhow::Result<Vec<u32>> {
    Ok(loaded.tokenizer.encode(text, false, false)?)
}

fn windows(args: &TextArgs, loaded: &Loaded, ids: Vec<u32>) -> anyhow::Result<Windows> {
    let limit = loaded.model.context_length();
    Ok(Windows::new(ids, loaded.bos(), args.context, args.max_tokens, limit)?)
}

fn show(bar: &CountBar, progress: &Progress) {
    bar.show(progress.done, progress.total, &format!("perplexity {:.3}", progress.ppl));
}
