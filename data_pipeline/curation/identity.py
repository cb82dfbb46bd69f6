"""Identity leaks: replies in which the model says whose model it is.

Only statements in the first person count ("I am Claude", "As an AI made by OpenAI"): a session that
installs the package openai or reads claude.md has nothing to leak.
"""

import re

from data_pipeline.curation import plain_text

_MODELS = (
    "deepseek", "chatgpt", "claude", "qwen", "qwq", "tongyi", "qianwen", "gemini", "llama",
    "mistral", "mixtral", "kimi", "chatglm", "minimax", "grok", "ernie", "doubao", "hunyuan",
    "nemotron", "internlm", "baichuan",
    "通义千问", "千问", "文心一言", "豆包", "智谱清言", "混元", "深度求索",
)  # fmt: skip
_SHORT_MODELS = (r"gpt[-\u2010 ]?(?=\d)", "glm")  # a version belongs to them
_MAKERS = (
    "deepseek", "openai", "anthropic", "alibaba", "google", "meta", "mistral", "moonshot", "zhipu",
    "z.ai", "minimax", "xai", "microsoft", "baidu", "bytedance", "tencent", "nvidia", "amazon",
    "cohere", "深度求索", "阿里", "谷歌", "月之暗面", "智谱", "百度", "字节跳动", "腾讯",
)  # fmt: skip

_MADE = r"(?:made|created|developed|trained|built|designed|fine-?tuned|released)"
# Between "I am" and the name nothing else may stand, so that "I am reading claude.md" is no leak;
# and the name is a word of its own, no part of a path, an address or a file name.
_FILLER = (
    r"(?:(?:actually|really|just|simply|an?|the|your|ai|artificial|intelligence|helpful|large|"
    r"language|model|assistant|llm|chatbot|bot|agent|coding|virtual|called|named|known|as|version|"
    r"of|new|open[- ]source)[,\s]+){0,10}"
)
_VERSION = r"(?:[ \u2010-]?[vr]?\d[\w.-]*)?"
_END = r"(?![\w/@=]|\.\w|-\w+[/.])"
_QUOTED = r"""[*"'\\\u2018\u201c]{0,4}"""  # as **Claude**; not in backticks, which mark code
_MODEL = rf"{_QUOTED}(?<![\w/.@-])(?:{'|'.join((*_MODELS, *_SHORT_MODELS))}){_VERSION}{_END}"
_MAKER = rf"(?<![\w/.@-])(?:{'|'.join(map(re.escape, _MAKERS))}){_END}"
_BY = rf"(?:by|at|from)\s+(?:the\s+)?(?:team\s+at\s+|company\s+|researchers\s+at\s+)?{_MAKER}"
_I_AM = (
    r"\b(?:i\s+am|i['\u2019]m|i\s+was|i['\u2019]ve\s+been|i\s+have\s+been|"
    r"my\s+name(?:\s+is|['\u2019]s))\s+"
)
_BASED_ON = rf"(?:(?:powered\s+by|(?:based|built)\s+(?:up)?on)\s+{_FILLER})?"
_NOUN = r"(?:(?:ai|large|language|chat)\s+)*(?:model|assistant|chatbot|ai|llm)\b"
_ANY_NAME = "|".join((*_MODELS, *_MAKERS, *_SHORT_MODELS))
_LEAKS = (
    rf"{_I_AM}{_FILLER}{_BASED_ON}{_MODEL}",
    rf"{_I_AM}{_FILLER}{_MADE}\s+(?:and\s+\w+\s+)?{_BY}",
    rf"{_I_AM}{_FILLER}{_NOUN},?\s+(?:provided\s+)?{_BY}",  # "I am at Google" is about a page
    rf"{_I_AM}{_FILLER}{_MAKER}(?:['\u2019]s)?\s+(?:{_NOUN}|{_MODEL})",
    rf"{_I_AM}(?:part|one|a\s+(?:member|version))\s+of\s+the\s+{_MODEL}\s+(?:family|series|models)",
    rf"\bas\s+{_FILLER}{_MODEL}\s*,?\s*(?:i\b|an?\s+(?:ai|assistant)|{_MADE}\s+by)",
    rf"\bas\s+an?\s+{_FILLER}{_MADE}\s+{_BY}",
    rf"\bmy\s+(?:creators?|developers?|makers?)\s*(?:is|are|at|,)\s+{_MAKER}",
    rf"我(?:是|叫|就是|的名字是)[^。\n]{{0,24}}?(?:{_ANY_NAME})",
)
_LEAK = re.compile("|".join(_LEAKS), re.IGNORECASE)
_HINTS = tuple(dict.fromkeys((*_MODELS, *_MAKERS, "gpt", "glm")))


def find_leak(text: str) -> str:
    """The statement in `text` that gives the model away; empty where there is none."""
    text = plain_text.of(text)
    lower = text.lower()
    if not any(hint in lower for hint in _HINTS):  # nearly always, and cheap
        return ""
    found = _LEAK.search(text)
    return found.group() if found else ""
