// Refresh the live part of a page of the console while it is seen. Without this script the page is just as complete.
'use strict';
{
    const ID = 'jobs-live';
    let paused = false;

    function isBusy(live) {
        const focused = document.activeElement;
        const typing = focused && live.contains(focused) && focused.matches('input, textarea, select');
        const selection = window.getSelection();
        return typing || (selection && !selection.isCollapsed && live.contains(selection.anchorNode));
    }

    function openDetails(live) {
        return Array.from(live.querySelectorAll('details'), (details) => details.open);
    }

    // The end of a log that goes on stays in sight, unless somebody has scrolled up to read.
    function followed(live) {
        const log = live.querySelector('[data-follow]');
        return log && log.scrollTop + log.clientHeight < log.scrollHeight - 4 ? log.scrollTop : null;
    }

    function follow(live, top) {
        const log = live.querySelector('[data-follow]');
        if (log) {
            log.scrollTop = top ?? log.scrollHeight;
        }
    }

    const BAR = '.jobs-column';

    // The bars of a chart are one stop of the Tab key; the arrow keys go from bar to bar.
    function stopAt(bar) {
        bar.closest('svg').querySelectorAll(BAR).forEach((one) => one.setAttribute('tabindex', one === bar ? '0' : '-1'));
        bar.focus();
    }

    function placeOfBar(live) {
        const bar = document.activeElement?.closest?.(BAR);
        const charts = Array.from(live.querySelectorAll('.jobs-chart'));
        return bar && live.contains(bar) ? {chart: charts.indexOf(bar.closest('svg')), at: bar.dataset.at} : null;
    }

    function focusBar(live, place) {
        const chart = place && live.querySelectorAll('.jobs-chart')[place.chart];
        const bar = chart?.querySelector(`${BAR}[data-at="${place.at}"]`) ?? chart?.querySelector(BAR);
        if (bar) {
            stopAt(bar);
        }
    }

    document.addEventListener('keydown', (event) => {
        const bar = event.target.closest?.(BAR);
        if (!bar || event.altKey || event.ctrlKey || event.metaKey) {
            return;
        }
        const bars = Array.from(bar.closest('svg').querySelectorAll(BAR));
        const index = bars.indexOf(bar);
        const next = {ArrowLeft: index - 1, ArrowRight: index + 1, Home: 0, End: bars.length - 1}[event.key];
        if (next !== undefined) {
            event.preventDefault();
            stopAt(bars[Math.min(Math.max(next, 0), bars.length - 1)]);
        }
    });

    async function refresh() {
        const live = document.getElementById(ID);
        if (!live || document.hidden || paused || isBusy(live)) {
            return;
        }
        const answer = await fetch(window.location.href, {credentials: 'same-origin', headers: {'X-Requested-With': 'XMLHttpRequest'}});
        if (!answer.ok || answer.redirected) {
            return;
        }
        const fresh = new DOMParser().parseFromString(await answer.text(), 'text/html').getElementById(ID);
        if (!fresh || isBusy(live)) {
            return;
        }
        const opened = openDetails(live);
        fresh.querySelectorAll('details').forEach((details, index) => { details.open = opened[index] ?? details.open; });
        const links = Array.from(live.querySelectorAll('a, button, summary'));
        const place = links.indexOf(document.activeElement);
        const bar = placeOfBar(live);
        const top = followed(live);
        live.replaceChildren(...fresh.childNodes);
        follow(live, top);
        live.dataset.refresh = fresh.dataset.refresh || '';
        if (place >= 0) {
            live.querySelectorAll('a, button, summary')[place]?.focus();
        }
        focusBar(live, bar);
        applyZoom();
        document.querySelector('.jobs-refresh span').textContent = new Date().toLocaleTimeString();
    }

    // A graph has its natural size; `zoom` is a factor of it, or 'fit' for all of it in its window.
    let zoom = 1;

    function applyZoom() {
        const picture = document.querySelector('.jobs-picture');
        const graph = picture?.querySelector('svg');
        if (!graph) {
            return;
        }
        const [, , width, height] = graph.getAttribute('viewBox').split(' ').map(Number);
        const fit = Math.min(1, picture.clientWidth / width, (window.innerHeight * 0.7) / height);
        const factor = zoom === 'fit' ? fit : zoom;
        graph.setAttribute('width', width * factor);
        graph.setAttribute('height', height * factor);
    }

    function changeZoom(how) {
        const graph = document.querySelector('.jobs-picture svg');
        const present = graph.getAttribute('width') / graph.getAttribute('viewBox').split(' ')[2];
        zoom = {fit: 'fit', real: 1, in: Math.min(4, present * 1.4), out: Math.max(0.1, present / 1.4)}[how];
        applyZoom();
    }

    document.addEventListener('click', (event) => {
        const button = event.target.closest?.('[data-zoom]');
        if (button) {
            changeZoom(button.dataset.zoom);
        }
    });

    async function run() {
        try {
            await refresh();
        } catch {
            // The next round tries again: the server may be away for a moment.
        }
        const seconds = Number(document.getElementById(ID)?.dataset.refresh);
        if (seconds) {
            window.setTimeout(run, seconds * 1000);
        }
    }

    function addControl(live) {
        const control = document.createElement('div');
        const button = document.createElement('button');
        control.className = 'jobs-refresh';
        control.append(document.createElement('span'), button);
        button.type = 'button';
        button.className = 'jobs-tool';
        const label = () => { button.textContent = paused ? live.dataset.labelResume || '▶' : live.dataset.labelPause || '⏸'; };
        button.addEventListener('click', () => {
            paused = !paused;
            button.setAttribute('aria-pressed', String(paused));
            label();
        });
        label();
        document.querySelector('.jobs-bar').prepend(control);
    }

    document.addEventListener('DOMContentLoaded', () => {
        document.documentElement.classList.add('jobs-script');
        const live = document.getElementById(ID);
        if (live) {
            follow(live, null);
        }
        if (live && Number(live.dataset.refresh)) {
            addControl(live);
            window.setTimeout(run, Number(live.dataset.refresh) * 1000);
        }
    });
    document.addEventListener('visibilitychange', () => { refresh().catch(() => {}); });
}
