"""Tiny models that reason. Their weights are random: a limit ends the reasoning."""

import json
import shutil

#: The prompt of an answer ends inside the reasoning, unless it is switched off.
ALWAYS = ("{% for m in messages %}<|{{ m['role'] }}|>{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
          "{{ m['content'] }}<|end|>{% endfor %}"
          "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is not defined or enable_thinking %}<think>\n"
          "{% else %}<think>\n\n</think>\n\n{% endif %}{% endif %}")


def thinker(model, folder, template=ALWAYS):
    """A copy of `model` with another chat template."""
    folder = folder / "thinker"
    shutil.copytree(model, folder)
    path = folder / "tokenizer_config.json"
    path.chmod(0o644)
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    return folder
