"""Named pieces of prompts (styles.py:17 and 82)."""


def merge_prompts(style_prompt, prompt):
    if "{prompt}" in style_prompt:
        return style_prompt.replace("{prompt}", prompt)
    return ", ".join(filter(None, (prompt.strip(), style_prompt.strip())))


class StyleDatabase:
    def __init__(self, paths):
        self.styles = {}

    def _applied(self, prompt, styles, part):
        for name in styles:
            prompt = merge_prompts(self.styles.get(name, ("", "", ""))[part], prompt)
        return prompt

    def apply_styles_to_prompt(self, prompt, styles):
        return self._applied(prompt, styles, 1)

    def apply_negative_styles_to_prompt(self, prompt, styles):
        return self._applied(prompt, styles, 2)
