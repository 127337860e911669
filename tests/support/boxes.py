"""Find text that is cut or lies over other text, by the boxes that a browser gives each piece of text of a page."""

from typing import Any

# A piece of text is cut when it reaches out of the page, or out of an ancestor that hides or scrolls what does not fit;
# what is scrolled on purpose says so by `tabindex="0"`, and what is shortened on purpose by a clamp. Two pieces overlap when
# the smaller box is covered by more than a quarter.
_FIND = """
() => {
    const found = [], boxes = [];
    const walker = document.createTreeWalker(document.querySelector('#content') || document.body, NodeFilter.SHOW_TEXT);
    const name = (node) => node.textContent.trim().replace(/\\s+/g, ' ').slice(0, 60);
    while (walker.nextNode()) {
        const node = walker.currentNode, element = node.parentElement;
        const ignored = 'svg, option, script, style, noscript, [hidden], pre, textarea';
        if (!node.textContent.trim() || element.closest(ignored)) continue;
        if (!element.checkVisibility({visibilityProperty: true, opacityProperty: true})) continue;
        const range = document.createRange();
        range.selectNodeContents(node);
        let isHidden = false, isClamped = false;
        for (let one = element; one && one !== document.body; one = one.parentElement) {
            const style = getComputedStyle(one), box = one.getBoundingClientRect();
            if (style.clipPath !== 'none' || box.width <= 1) isHidden = true;
            if (style.webkitLineClamp !== 'none') isClamped = true;
            if (isHidden || isClamped || one.getAttribute('tabindex') === '0') break;
            if (style.overflowX !== 'visible') {
                for (const rect of range.getClientRects()) {
                    if (rect.right > box.right + 1 || rect.left < box.left - 1) { found.push('cut: ' + name(node)); break; }
                }
            }
        }
        if (isHidden || isClamped) continue;
        const scrolls = element.closest('[tabindex="0"]');
        for (const rect of range.getClientRects()) {
            if (rect.width < 2 || rect.height < 2) continue;
            if (!scrolls && rect.right > document.documentElement.clientWidth + 1) found.push('outside: ' + name(node));
            boxes.push([rect, node]);
        }
    }
    for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++) {
        const [a, first] = boxes[i], [b, second] = boxes[j];
        if (first === second) continue;
        const width = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const height = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (width > 2 && height > 2 && width * height > Math.min(a.width * a.height, b.width * b.height) / 4) {
            found.push('overlap: ' + name(first) + ' / ' + name(second));
        }
    }
    return [...new Set(found)];
}
"""


def troubles_of(page: Any) -> list[str]:
    """Return what is cut, outside or overlapping on a page of Playwright; empty where all can be read."""
    found: list[str] = page.evaluate(_FIND)
    return found
