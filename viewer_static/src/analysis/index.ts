/** From an opened update to what an algorithm makes of each of its tokens. */
export { analyse, available } from "./analyse";
export { analysed } from "./cache";
export { changed, largest, resized, type Resized } from "./changed";
export { hardest, type Hardest } from "./hardest";
export { newestSpec, ownSpec } from "./own";
export { reconcile } from "./reconcile";
export * from "./types";
