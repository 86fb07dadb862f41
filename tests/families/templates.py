"""Chat templates in the style of each family's checkpoints on the hub."""

_EACH = "{% for m in messages %}"
_END = "{% endfor %}"
_PROMPT = "{% if add_generation_prompt %}"


def _parts(image: str, text: str = "{{ c['text'] }}") -> str:
    """A message's images and texts in their order."""
    return (
        "{% for c in m['content'] %}{% if c['type'] == 'image' %}"
        + f"{image}{{% else %}}{text}{{% endif %}}{{% endfor %}}"
    )


LLAVA = (
    _EACH
    + "{{ m['role'].upper() + ': ' }}"
    + "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}"
    + _END
    + "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] + ' ' }}"
    + _END
    + _END
    + _PROMPT
    + "{{ 'ASSISTANT:' }}{% endif %}"
)
LLAVA_NEXT = _EACH + "[INST] " + _parts("{{ '<image>\n' }}") + " [/INST]" + _END
ONEVISION = (
    _EACH
    + "{{ '<|im_start|>' + m['role'] + ' ' }}"
    + "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}"
    + _END
    + "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + c['text'] }}"
    + _END
    + "{{ '<|im_end|>' }}"
    + _END
    + _PROMPT
    + "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CHATML = "{{ '<|im_start|>' + m['role'] + '\n' }}%s{{ '<|im_end|>\n' }}"
_ASSISTANT = "{{ '<|im_start|>assistant\n' }}"
_QWEN = _CHATML % _parts("<|vision_start|><|image_pad|><|vision_end|>")
QWEN2 = (
    _EACH
    + "{% if loop.first and m['role'] != 'system' %}"
    + "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    + _QWEN
    + _END
    + _PROMPT
    + _ASSISTANT
    + "{% endif %}"
)
QWEN3 = _EACH + _QWEN + _END + _PROMPT + _ASSISTANT + "{% endif %}"
QWEN3_5 = (
    _EACH + _QWEN + _END + _PROMPT + _ASSISTANT + "{{ '<think>\n\n</think>\n\n' }}" + "{% endif %}"
)
INTERNVL = (
    _EACH
    + _CHATML % _parts("{{ '<IMG_CONTEXT>\n' }}")
    + _END
    + _PROMPT
    + _ASSISTANT
    + "{% endif %}"
)
IDEFICS = (
    "<|im_start|>"
    + _EACH
    + "{{ m['role'].capitalize() }}"
    + "{% if m['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    + _parts("<image>")
    + "{{ '<end_of_utterance>\n' }}"
    + _END
    + _PROMPT
    + "{{ 'Assistant:' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}"
    + _EACH
    + "{{ '<start_of_turn>' + m['role'] + '\n' }}"
    + _parts("{{ '<start_of_image>' }}", "{{ c['text'] | trim }}")
    + "{{ '<end_of_turn>\n' }}"
    + _END
    + _PROMPT
    + "{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA4 = GEMMA.replace("<start_of_turn>", "<|turn>").replace("<end_of_turn>", "<turn|>")
GEMMA4 = GEMMA4.replace("<start_of_image>", "\n\n<|image|>\n\n")
MISTRAL = "{{ bos_token }}" + _EACH + "[INST]" + _parts("[IMG]") + "[/INST]" + _END
AYA = (
    "{{ bos_token }}"
    + _EACH
    + "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>"
    + _parts("<image>")
    + "<|END_OF_TURN_TOKEN|>"
    + _END
    + _PROMPT
    + "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}"
)
GLM = (
    "[gMASK]<sop>"
    + _EACH
    + "{{ '<|user|>\n' }}"
    + _parts("<|begin_of_image|><|image|><|end_of_image|>")
    + _END
    + _PROMPT
    + "{{ '<|assistant|>\n' }}{% endif %}"
)
OVIS = _EACH + _CHATML % _parts("{{ '<image>\n' }}") + _END + _PROMPT + _ASSISTANT + "{% endif %}"
DEEPSEEK = (
    _EACH
    + "{{ m['role'].capitalize() + ': ' }}"
    + _parts("<image_placeholder>")
    + "{{ '\n\n' }}"
    + _END
    + _PROMPT
    + "{{ 'Assistant:' }}{% endif %}"
)
