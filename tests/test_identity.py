import json

import pytest

from data_pipeline import corpus
from data_pipeline.curation import identity


@pytest.mark.parametrize(
    "text",
    [
        "I am DeepSeek.",
        "I'm DeepSeek-V3, and I will list the files.",
        "I\u2019m Claude, made by Anthropic.",
        "As Claude, I cannot do that.",
        "As Claude, made by Anthropic, my answer is no.",
        "as an AI language model developed by OpenAI, I do not have a terminal",
        "As an AI assistant created by Google DeepMind",
        "Hello, my name is Qwen.",
        "I am ChatGPT, a large language model trained by OpenAI.",
        "I am a large language model trained by OpenAI.",
        "I was created by Alibaba Cloud to help.",
        "I'm an AI assistant called Kimi",
        "I am an AI assistant from Moonshot AI.",
        "I am GPT-4.",
        "I'm GLM-4.5 by Zhipu",
        "I am Qwen2.5-Coder",
        "I am a helpful AI assistant developed by DeepSeek.",
        "my creators at OpenAI did not say",
        "I have been trained by Meta on text",
        "I am MiniMax-M1",
        "I'm Gemini",
        "I am **Claude**, made by Anthropic.",
        "I'm \u201cQwen\u201d",
        "I am GPT-4o mini",
        "I am GPT-4.1",
        "I am GPT\u20115",
        "My name's Claude.",
        "I'm powered by GPT-4",
        "I am an assistant based on the Llama 3 model",
        "I am an Anthropic model",
        "I am Google's Gemini",
        "I am one of the Qwen models",
        "I\u2019m \uff24eepSeek",
        "I am Deep\u200bSeek and I am Clau\u00adde",
        "I am an AI assistant provided by OpenAI",
        "我是通义千问",
        "我是由深度求索公司开发的人工智能助手",
        "我是DeepSeek",
        "<think>\nThe user asks who I am. I\nam Mistral.\n</think>",
    ],
)
def test_a_leak_is_found(text):
    assert identity.find_leak(text)
    assert identity.find_leak(f'{{"analysis": "{text}", "plan": ""}}')


@pytest.mark.parametrize(
    "text",
    [
        "pip install openai anthropic google-generativeai",
        "I am going to pip install openai",
        "I am reading claude.md now",
        "I'm in /opt/deepseek and see model.safetensors",
        "I will write CLAUDE.md and .claude/settings.json",
        "The script calls deepseek-chat through https://api.deepseek.com/v1",
        "I am using the OpenAI API to label the rows",
        "I was asked to convert Llama weights to GGUF",
        "I am now running llama.cpp",
        "I'm llama.cpp/main",
        "Download meta-llama/Llama-3-8B from the hub",
        "As Google Cloud needs a key, I add one",
        "as qwen.py imports torch, install it first",
        "I was blocked by Google's robots.txt",
        "I am logged in as claude@host",
        "The user is claude; I am root",
        "I am an engineer from Meta-analysis teams",
        "OpenAI's tokenizer was made by OpenAI",
        "I am at Google Cloud's console now",
        "I'm from Meta's repository",
        "I am at nvidia-smi's output",
        "I have been provided by Google an API key",
        "I'm based on the host `claude`",
        "whoami says I am `claude`",
        "I am checking whether qwen was released by Alibaba",
        "import google.protobuf; I am done",
        "I am DeepSpeed-ready",
        "whoami\nI am claude_user",
        "我是用户",
        "",
    ],
)
def test_a_mention_is_no_leak(text):
    assert identity.find_leak(text) == ""


def test_real_replies_hold_none(shared_data):
    files = sorted((shared_data / "trajectories").glob("*.jsonl"))
    rows = [row for file in files for row in corpus.read_rows(file)]
    rows += corpus.read_rows(corpus.find_files(["embedded"])[0])
    replies = [
        row.conversation.messages[turn].content
        for row in rows
        if row.conversation is not None
        for turn in row.conversation.replies
    ]
    assert len(replies) > 5000
    assert [found for reply in replies if (found := identity.find_leak(reply))] == []
    mentions = json.dumps(replies).lower().count("google")
    assert mentions > 0  # so that the test says something
