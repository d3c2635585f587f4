"""A chart of bars with their ranges, as an SVG file of its own: no library, no script, readable in light and dark."""
from html import escape

BAR, GAP, LEFT, WIDTH, RIGHT = 18, 14, 190, 480, 110
COLOURS = ("#2a6fb5", "#c8722c", "#4a8f4a", "#8a5fb0", "#b03a5b", "#5f6b76")
STYLE = ("text{font:12px sans-serif;fill:#222}.title{font-weight:bold}.range{stroke:#222;stroke-width:1.5}svg{background:#fff}"
         "@media(prefers-color-scheme:dark){text{fill:#ddd}.range{stroke:#ddd}svg{background:#181a1b}}")


def bars(title, groups):
    """SVG text. groups: {heading: {name: (least, median, most)}}. Names that begin with the same word have one colour; each
    group has a scale of its own, as its unit may be another."""
    words = list(dict.fromkeys(name.split()[0] for group in groups.values() for name in group))
    colour = {word: COLOURS[i % len(COLOURS)] for i, word in enumerate(words)}
    parts, y = [], 26
    for heading, group in groups.items():
        y += GAP
        parts.append(f'<text class="title" x="8" y="{y}">{escape(heading)}</text>')
        y += 8
        longest = max(most for _, _, most in group.values()) or 1
        for name, (least, median, most) in group.items():
            middle = y + BAR / 2
            start, end = (LEFT + WIDTH * value / longest for value in (least, most))
            parts.append(
                f'<text x="{LEFT - 8}" y="{middle + 4}" text-anchor="end">{escape(name)}</text>'
                f'<rect x="{LEFT}" y="{y + 2}" width="{WIDTH * median / longest:.1f}" height="{BAR - 4}" fill="{colour[name.split()[0]]}"/>'
                f'<line class="range" x1="{start:.1f}" x2="{end:.1f}" y1="{middle}" y2="{middle}"/>'
                f'<text x="{LEFT + WIDTH + 8}" y="{middle + 4}">{median:,.0f}</text>')
            y += BAR
        y += GAP
    width = LEFT + WIDTH + RIGHT
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" viewBox="0 0 {width} {y}" role="img" '
            f'aria-label="{escape(title)}"><style>{STYLE}</style><text class="title" x="8" y="18">{escape(title)}</text>'
            + "".join(parts) + "</svg>\n")
