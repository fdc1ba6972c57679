//! The 21 tasks with prompt, answer length and metric. The texts are LongBench's, including its typing errors.

use crate::metrics::Metric;

/// A task: its prompt and its metric.
#[derive(Debug, Clone, Copy)]
pub struct Task {
    /// LongBench's name.
    pub name: &'static str,
    /// The prompt before the context.
    pub before: &'static str,
    /// The prompt after the context; `{input}` is replaced by the sample's question.
    pub after: &'static str,
    /// Maximum length of an answer, tokens.
    pub answer_tokens: usize,
    /// The metric of its answers.
    pub metric: Metric,
    /// Whether prompts of chat models use the chat template: not for few-shot and code tasks.
    pub chat: bool,
    /// Only the first line of an answer counts (few-shot tasks).
    pub first_line: bool,
}

/// The options of most tasks.
const PLAIN: Task = Task {
    name: "",
    before: "",
    after: "",
    answer_tokens: 64,
    metric: Metric::F1,
    chat: true,
    first_line: false,
};

/// The options of few-shot tasks, which chat models receive without their template. An answer has one line.
const FEW_SHOT: Task = Task { chat: false, first_line: true, ..PLAIN };

/// The options of the tasks whose question needs several documents.
const SEVERAL_DOCUMENTS: Task = Task {
    name: "",
    before: "Answer the question based on the given passages. Only give me the answer and do not output any other words.\n\nThe following are given passages.\n",
    after: "\n\nAnswer the question based on the given passages. Only give me the answer and do not output any other words.\n\nQuestion: {input}\nAnswer:",
    answer_tokens: 32,
    metric: Metric::F1,
    ..PLAIN
};

/// In LongBench's order.
pub static TASKS: [Task; 21] = [
    Task {
        name: "narrativeqa",
        before: "You are given a story, which can be either a novel or a movie script, and a question. Answer the question asconcisely as you can, using a single phrase if possible. Do not provide any explanation.\n\nStory: ",
        after: "\n\nNow, answer the question based on the story asconcisely as you can, using a single phrase if possible. Do not provide any explanation.\n\nQuestion: {input}\n\nAnswer:",
        answer_tokens: 128,
        metric: Metric::F1,
        ..PLAIN
    },
    Task {
        name: "qasper",
        before: "You are given a scientific article and a question. Answer the question as concisely as you can, using a single phrase or sentence if possible. If the question cannot be answered based on the information in the article, write \"unanswerable\". If the question is a yes/no question, answer \"yes\", \"no\", or \"unanswerable\". Do not provide any explanation.\n\nArticle: ",
        after: "\n\n Answer the question based on the above article as concisely as you can, using a single phrase or sentence if possible. If the question cannot be answered based on the information in the article, write \"unanswerable\". If the question is a yes/no question, answer \"yes\", \"no\", or \"unanswerable\". Do not provide any explanation.\n\nQuestion: {input}\n\nAnswer:",
        answer_tokens: 128,
        metric: Metric::F1,
        ..PLAIN
    },
    Task {
        name: "multifieldqa_en",
        before: "Read the following text and answer briefly.\n\n",
        after: "\n\nNow, answer the following question based on the above text, only give me the answer and do not output any other words.\n\nQuestion: {input}\nAnswer:",
        ..PLAIN
    },
    Task {
        name: "multifieldqa_zh",
        before: "阅读以下文字并用中文简短回答：\n\n",
        after: "\n\n现在请基于上面的文章回答下面的问题，只告诉我答案，不要输出任何其他字词。\n\n问题：{input}\n回答：",
        answer_tokens: 64,
        metric: Metric::F1Zh,
        ..PLAIN
    },
    Task { name: "hotpotqa", ..SEVERAL_DOCUMENTS },
    Task { name: "2wikimqa", ..SEVERAL_DOCUMENTS },
    Task { name: "musique", ..SEVERAL_DOCUMENTS },
    Task {
        name: "dureader",
        before: "请基于给定的文章回答下述问题。\n\n文章：",
        after: "\n\n请基于上述文章回答下面的问题。\n\n问题：{input}\n回答：",
        answer_tokens: 128,
        metric: Metric::RougeLZh,
        ..PLAIN
    },
    Task {
        name: "gov_report",
        before: "You are given a report by a government agency. Write a one-page summary of the report.\n\nReport:\n",
        after: "\n\nNow, write a one-page summary of the report.\n\nSummary:",
        answer_tokens: 512,
        metric: Metric::RougeL,
        ..PLAIN
    },
    Task {
        name: "qmsum",
        before: "You are given a meeting transcript and a query containing a question or instruction. Answer the query in one or more sentences.\n\nTranscript:\n",
        after: "\n\nNow, answer the query based on the above meeting transcript in one or more sentences.\n\nQuery: {input}\nAnswer:",
        answer_tokens: 512,
        metric: Metric::RougeL,
        ..PLAIN
    },
    Task {
        name: "multi_news",
        before: "You are given several news passages. Write a one-page summary of all news. \n\nNews:\n",
        after: "\n\nNow, write a one-page summary of all the news.\n\nSummary:",
        answer_tokens: 512,
        metric: Metric::RougeL,
        ..PLAIN
    },
    Task {
        name: "vcsum",
        before: "下面有一段会议记录，请你阅读后，写一段总结，总结会议的内容。\n会议记录：\n",
        after: "\n\n会议总结：",
        answer_tokens: 512,
        metric: Metric::RougeLZh,
        ..PLAIN
    },
    Task {
        name: "trec",
        before: "Please determine the type of the question below. Here are some examples of questions.\n\n",
        after: "\n{input}",
        answer_tokens: 64,
        metric: Metric::Accuracy,
        ..FEW_SHOT
    },
    Task {
        name: "triviaqa",
        before: "Answer the question based on the given passage. Only give me the answer and do not output any other words. The following are some examples.\n\n",
        after: "\n\n{input}",
        answer_tokens: 32,
        metric: Metric::F1,
        ..FEW_SHOT
    },
    Task {
        name: "samsum",
        before: "Summarize the dialogue into a few short sentences. The following are some examples.\n\n",
        after: "\n\n{input}",
        answer_tokens: 128,
        metric: Metric::RougeL,
        ..FEW_SHOT
    },
    Task {
        name: "lsht",
        before: "请判断给定新闻的类别，下面是一些例子。\n\n",
        after: "\n{input}",
        answer_tokens: 64,
        metric: Metric::Accuracy,
        ..FEW_SHOT
    },
    Task {
        name: "passage_count",
        before: "There are some paragraphs below sourced from Wikipedia. Some of them may be duplicates. Please carefully read these paragraphs and determine how many unique paragraphs there are after removing duplicates. In other words, how many non-repeating paragraphs are there in total?\n\n",
        after: "\n\nPlease enter the final count of unique paragraphs after removing duplicates. The output format should only contain the number, such as 1, 2, 3, and so on.\n\nThe final answer is: ",
        answer_tokens: 32,
        metric: Metric::Count,
        ..PLAIN
    },
    Task {
        name: "passage_retrieval_en",
        before: "Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine which paragraph the abstract is from.\n\n",
        after: "\n\nThe following is an abstract.\n\n{input}\n\nPlease enter the number of the paragraph that the abstract is from. The answer format must be like \"Paragraph 1\", \"Paragraph 2\", etc.\n\nThe answer is: ",
        answer_tokens: 32,
        metric: Metric::Retrieval,
        ..PLAIN
    },
    Task {
        name: "passage_retrieval_zh",
        before: "以下是若干段落文字，以及其中一个段落的摘要。请确定给定的摘要出自哪一段。\n\n",
        after: "\n\n下面是一个摘要\n\n{input}\n\n请输入摘要所属段落的编号。答案格式必须是\"段落1\"，\"段落2\"等格式\n\n答案是：",
        answer_tokens: 32,
        metric: Metric::RetrievalZh,
        ..PLAIN
    },
    Task {
        name: "lcc",
        before: "Please complete the code given below. \n",
        after: "Next line of code:\n",
        answer_tokens: 64,
        metric: Metric::EditSimilarity,
        chat: false,
        first_line: false,
    },
    Task {
        name: "repobench-p",
        before: "Please complete the code given below. \n",
        after: "{input}Next line of code:\n",
        answer_tokens: 64,
        metric: Metric::EditSimilarity,
        chat: false,
        first_line: false,
    },
];
