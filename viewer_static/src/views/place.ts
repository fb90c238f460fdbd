/** Where a floating card goes: below its anchor where there is room, else above, inside the window either way. */
export function place(
  anchor: { left: number; top: number; bottom: number },
  width: number,
  height: number,
  windowWidth: number,
  windowHeight: number,
): { left: number; top: number } | null {
  const gap = 8;
  if (anchor.bottom < 0 || anchor.top > windowHeight) return null;
  const left = Math.max(gap, Math.min(anchor.left - 12, windowWidth - width - gap));
  const below = anchor.bottom + gap;
  if (below + height <= windowHeight - gap) return { left, top: below };
  const above = anchor.top - gap - height;
  return { left, top: above >= gap ? above : Math.max(gap, windowHeight - height - gap) };
}
