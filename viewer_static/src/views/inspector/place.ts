export interface Box {
  left: number;
  right: number;
  top: number;
  bottom: number;
}

/**
 * Where a floating card goes: below its anchor where there is room, else above, else beside it, inside the pane in any
 * case but the last. It covers its anchor only where there is no other place.
 */
export function place(anchor: Box, width: number, height: number, pane: Box, windowWidth: number): { left: number; top: number } | null {
  const gap = 10;
  if (anchor.bottom < pane.top || anchor.top > pane.bottom) return null;
  const left = Math.max(pane.left + gap, Math.min(anchor.left - 12, pane.right - width - gap));
  const below = anchor.bottom + gap;
  if (below + height <= pane.bottom - gap) return { left, top: below };
  const above = anchor.top - gap - height;
  if (above >= gap) return { left, top: above };
  const top = Math.max(gap, pane.bottom - height - gap);
  const right = anchor.right + gap;
  if (right + width <= windowWidth - gap) return { left: right, top };
  const before = anchor.left - gap - width;
  return { left: before >= gap ? before : left, top };
}
